//go:build tools

// Package tools pins the program that tests build from this module.
package tools

import _ "sigs.k8s.io/dra-driver-nvidia-gpu/cmd/gpu-kubelet-plugin"
