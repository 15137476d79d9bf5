module partita/tests/contract/go-nvml

go 1.25.0

require (
	github.com/NVIDIA/go-nvlib v0.11.0
	github.com/NVIDIA/go-nvml v0.13.1-0
)

require github.com/google/uuid v1.6.0 // indirect
