// Package nvfm stands in for NVIDIA's binding of its fabric manager, which no module proxy serves. The driver calls it
// behind the feature gate FabricManagerPartitioning only, which the tests leave off; here is what it needs to compile.
package nvfm

type (
	Return            int
	FabricPartitionId uint32
	LibraryOption     func()
	ConnectOption     func()
)

const SUCCESS Return = 0

func (Return) String() string { return "no fabric manager" }

type GpuInfo struct {
	PhysicalId                                             uint32
	Uuid, PciBusId                                         [64]int8
	NumNvLinksAvailable, MaxNumNvLinks, NvlinkLineRateMBps uint32
}

type PartitionInfo struct {
	PartitionId, IsActive, NumGpus uint32
	GpuInfo                        [1]GpuInfo
}

type FabricPartitionList struct {
	NumPartitions uint32
	PartitionInfo [1]PartitionInfo
}

type Handle interface {
	GetSupportedFabricPartitions() (FabricPartitionList, Return)
	ActivateFabricPartition(FabricPartitionId) Return
	DeactivateFabricPartition(FabricPartitionId) Return
	Disconnect() Return
}

type Interface interface {
	Init() Return
	Shutdown() Return
	Connect(...ConnectOption) (Handle, Return)
}

func New(...LibraryOption) Interface       { panic("no fabric manager") }
func WithLibraryPath(string) LibraryOption { return nil }
func WithUnixSocket(string) ConnectOption  { return nil }
func WithAddress(string) ConnectOption     { return nil }
func WithTimeoutMs(uint32) ConnectOption   { return nil }
