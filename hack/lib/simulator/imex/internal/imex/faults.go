package imex

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"time"
)

// Faults tell this stand-in to misbehave. They are in the state file of the simulated node, which containers that get
// the driver's libraries get too, and may change at any time (`simulator inject imex`).
type Faults struct {
	Hang          bool          // answer nobody: peers, commands, signals
	Die           bool          // exit 1 at once
	Degraded      bool          // refuse peers, so that the domain is DEGRADED
	IgnoreSigterm bool          // only SIGKILL ends it
	ReadyDelay    time.Duration // from start to READY
	DomainDelay   time.Duration // before nvidia-imex-ctl answers for the entire domain
}

// Where the state file has its faults: `layout.py` (State, Fault) and `native/state.h`.
const (
	statePattern = "/usr/lib/*-linux-gnu/libnvidia-simulator.so.*"
	stateMagic   = "nvidia-simulator"
	stateOffset  = 16384
	faultsOffset = 16 + 8*4 + 40 + 256 + 64 + 128 + 32
	faultCount   = 32
	faultName    = 64
	faultSize    = faultName + 4*4
	delayOffset  = faultName + 3*4
)

func stateFile() string {
	if path := os.Getenv("IMEX_SIMULATOR_STATE"); path != "" {
		return path
	}
	if found, err := filepath.Glob(statePattern); err == nil && len(found) > 0 {
		return found[0]
	}
	return ""
}

// ReadFaults returns no fault where there is no state file.
func ReadFaults() Faults {
	file, err := os.Open(stateFile())
	if err != nil {
		return Faults{}
	}
	defer file.Close()
	state := make([]byte, faultsOffset+faultCount*faultSize)
	if _, err := file.ReadAt(state, stateOffset); err != nil || !bytes.HasPrefix(state, []byte(stateMagic)) {
		return Faults{}
	}
	var faults Faults
	for index := range faultCount {
		entry := state[faultsOffset+index*faultSize:]
		name, _, _ := bytes.Cut(entry[:faultName], []byte{0})
		switch string(name) {
		case "imex-hang":
			faults.Hang = true
		case "imex-die":
			faults.Die = true
		case "imex-degraded":
			faults.Degraded = true
		case "imex-ignore-sigterm":
			faults.IgnoreSigterm = true
		case "imex-slow":
			faults.ReadyDelay = delay(entry)
		case "imex-slow-domain":
			faults.DomainDelay = delay(entry)
		}
	}
	return faults
}

func delay(entry []byte) time.Duration {
	return time.Duration(binary.LittleEndian.Uint32(entry[delayOffset:])) * time.Microsecond
}
