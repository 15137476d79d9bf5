package imex

import (
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Faults tell this stand-in to misbehave. They are KEY=value lines in a file that may change at any time.
type Faults struct {
	Hang          bool          // answer nobody: peers, commands, signals
	Die           bool          // exit 1 at once
	Degraded      bool          // refuse peers, so that the domain is DEGRADED
	IgnoreSigterm bool          // only SIGKILL ends it
	ReadyDelay    time.Duration // from start to READY
}

// FaultsPattern names the file in a driver root; the name is that of a driver library, so that containers which get
// the driver's libraries get it too.
const FaultsPattern = "/usr/lib/*-linux-gnu/libnvidia-imex-simulator.so.*"

func faultsFile(nodesFile string) string {
	if path := os.Getenv("IMEX_SIMULATOR_FAULTS"); path != "" {
		return path
	}
	if found, err := filepath.Glob(FaultsPattern); err == nil && len(found) > 0 {
		return found[0]
	}
	return filepath.Join(filepath.Dir(nodesFile), "imex-simulator-faults")
}

// ReadFaults returns no fault when there is no file.
func ReadFaults(nodesFile string) Faults {
	lines, err := readLines(faultsFile(nodesFile))
	if err != nil {
		return Faults{}
	}
	values := (&Config{raw: map[string]string{}}).withLines(lines)
	milliseconds, err := strconv.Atoi(values.text("ready_delay_ms", "0"))
	if err != nil {
		milliseconds = 0
	}
	return Faults{
		Hang:          values.text("hang", "0") == "1",
		Die:           values.text("die", "0") == "1",
		Degraded:      values.text("degraded", "0") == "1",
		IgnoreSigterm: values.text("ignore_sigterm", "0") == "1",
		ReadyDelay:    time.Duration(milliseconds) * time.Millisecond,
	}
}
