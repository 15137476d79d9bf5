//go:build tools

// Package tools pins the programs that hack/cluster builds from this module.
package tools

import (
	_ "github.com/kubeflow/mpi-operator/cmd/mpi-operator"
)
