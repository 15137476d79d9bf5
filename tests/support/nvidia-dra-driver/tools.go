//go:build tools

// Package tools names the programs of NVIDIA's DRA driver that the tests run.
package tools

import (
	_ "sigs.k8s.io/dra-driver-nvidia-gpu/cmd/gpu-kubelet-plugin"
)
