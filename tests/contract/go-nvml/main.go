// Command go-nvml checks an NVML library through NVIDIA's own Go bindings, as drivers built on them use it: it
// enumerates GPUs, profiles and MIG devices, creates one instance of every profile and destroys it again.
//
// usage: go-nvml LIBRARY. It prints one JSON object; a broken expectation ends it with status 1.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	nvdev "github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

type gpuReport struct {
	Name     string   `json:"name"`
	UUID     string   `json:"uuid"`
	PCIBusID string   `json:"pciBusId"`
	Minor    int      `json:"minor"`
	Brand    string   `json:"brand"`
	Arch     string   `json:"architecture"`
	Profiles []string `json:"profiles"`
	Created  []string `json:"created"`
}

type report struct {
	Driver string      `json:"driver"`
	CUDA   int         `json:"cuda"`
	GPUs   []gpuReport `json:"gpus"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go-nvml LIBRARY")
		os.Exit(2)
	}
	result, err := inspect(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		os.Exit(1)
	}
}

func check(what string, ret nvml.Return) error {
	if ret != nvml.SUCCESS {
		return fmt.Errorf("%s: %v", what, nvml.ErrorString(ret))
	}
	return nil
}

func inspect(path string) (*report, error) {
	lib := nvml.New(nvml.WithLibraryPath(path))
	if err := check("Init", lib.Init()); err != nil {
		return nil, err
	}
	defer lib.Shutdown()
	devices := nvdev.New(lib)
	driver, ret := lib.SystemGetDriverVersion()
	if err := check("SystemGetDriverVersion", ret); err != nil {
		return nil, err
	}
	cuda, ret := lib.SystemGetCudaDriverVersion()
	if err := check("SystemGetCudaDriverVersion", ret); err != nil {
		return nil, err
	}
	result := &report{Driver: driver, CUDA: cuda}
	gpus, err := devices.GetDevices()
	if err != nil {
		return nil, fmt.Errorf("GetDevices: %w", err)
	}
	for _, gpu := range gpus {
		one, err := inspectGPU(devices, gpu)
		if err != nil {
			return nil, err
		}
		result.GPUs = append(result.GPUs, *one)
	}
	return result, nil
}

func inspectGPU(devices nvdev.Interface, gpu nvdev.Device) (*gpuReport, error) {
	one := &gpuReport{}
	var err error
	var ret nvml.Return
	if one.Name, ret = gpu.GetName(); ret != nvml.SUCCESS {
		return nil, check("GetName", ret)
	}
	if one.UUID, ret = gpu.GetUUID(); ret != nvml.SUCCESS {
		return nil, check("GetUUID", ret)
	}
	if one.Minor, ret = gpu.GetMinorNumber(); ret != nvml.SUCCESS {
		return nil, check("GetMinorNumber", ret)
	}
	if one.PCIBusID, err = gpu.GetPCIBusID(); err != nil {
		return nil, fmt.Errorf("GetPCIBusID: %w", err)
	}
	if one.Brand, err = gpu.GetBrandAsString(); err != nil {
		return nil, fmt.Errorf("GetBrandAsString: %w", err)
	}
	if one.Arch, err = gpu.GetArchitectureAsString(); err != nil {
		return nil, fmt.Errorf("GetArchitectureAsString: %w", err)
	}
	capable, err := gpu.IsMigCapable()
	if err != nil || !capable {
		return one, err
	}
	profiles, err := gpu.GetMigProfiles()
	if err != nil {
		return nil, fmt.Errorf("GetMigProfiles: %w", err)
	}
	for _, profile := range profiles {
		one.Profiles = append(one.Profiles, profile.String())
	}
	activation, ret := gpu.SetMigMode(nvml.DEVICE_MIG_ENABLE)
	if err := check("SetMigMode", ret); err != nil {
		return nil, err
	}
	if activation != nvml.SUCCESS {
		return one, nil // the mode waits for a reset
	}
	for _, profile := range profiles {
		name, err := createAndDestroy(devices, gpu, profile.GetInfo())
		if err != nil {
			return nil, fmt.Errorf("GPU %d, profile %s: %w", one.Minor, profile, err)
		}
		if name != "" {
			one.Created = append(one.Created, name)
		}
	}
	_, ret = gpu.SetMigMode(nvml.DEVICE_MIG_DISABLE)
	return one, check("SetMigMode", ret)
}

// createAndDestroy makes an instance whose compute instance spans it, and returns the name that enumeration gives it.
func createAndDestroy(devices nvdev.Interface, gpu nvdev.Device, info nvdev.MigProfileInfo) (string, error) {
	if info.C != info.G {
		return "", nil
	}
	profile, ret := gpu.GetGpuInstanceProfileInfo(info.GIProfileID)
	if err := check("GetGpuInstanceProfileInfo", ret); err != nil {
		return "", err
	}
	placements, ret := gpu.GetGpuInstancePossiblePlacements(&profile)
	if err := check("GetGpuInstancePossiblePlacements", ret); err != nil {
		return "", err
	}
	last := placements[len(placements)-1]
	gi, ret := gpu.CreateGpuInstanceWithPlacement(&profile, &last)
	if err := check("CreateGpuInstanceWithPlacement", ret); err != nil {
		return "", err
	}
	if _, ret := gpu.CreateGpuInstanceWithPlacement(&profile, &last); ret != nvml.ERROR_INSUFFICIENT_RESOURCES {
		return "", fmt.Errorf("a second instance at the same placement: %v", nvml.ErrorString(ret))
	}
	computeProfile, ret := gi.GetComputeInstanceProfileInfo(info.CIProfileID, info.CIEngProfileID)
	if ret == nvml.ERROR_NOT_SUPPORTED { // go-nvlib guesses compute profiles; this GPU does not offer this one
		return "", check("GpuInstance.Destroy", gi.Destroy())
	}
	if err := check("GetComputeInstanceProfileInfo", ret); err != nil {
		return "", err
	}
	ci, ret := gi.CreateComputeInstance(&computeProfile)
	if err := check("CreateComputeInstance", ret); err != nil {
		return "", err
	}
	name, err := enumerated(devices, gpu)
	if err != nil {
		return "", err
	}
	if ret := gi.Destroy(); ret != nvml.ERROR_IN_USE {
		return "", fmt.Errorf("destroying a GPU instance that holds a compute instance: %v", nvml.ErrorString(ret))
	}
	if err := check("ComputeInstance.Destroy", ci.Destroy()); err != nil {
		return "", err
	}
	return name, check("GpuInstance.Destroy", gi.Destroy())
}

// enumerated is the profile of the one MIG device that the GPU has.
func enumerated(devices nvdev.Interface, gpu nvdev.Device) (string, error) {
	migs, err := gpu.GetMigDevices()
	if err != nil {
		return "", fmt.Errorf("GetMigDevices: %w", err)
	}
	if len(migs) != 1 {
		return "", fmt.Errorf("%d MIG devices instead of 1", len(migs))
	}
	uuid, ret := migs[0].GetUUID()
	if err := check("MIG GetUUID", ret); err != nil {
		return "", err
	}
	if _, err := devices.NewMigDeviceByUUID(uuid); err != nil {
		return "", fmt.Errorf("NewMigDeviceByUUID: %w", err)
	}
	profile, err := migs[0].GetProfile()
	if err != nil {
		return "", fmt.Errorf("MIG GetProfile: %w", err)
	}
	return profile.String(), nil
}
