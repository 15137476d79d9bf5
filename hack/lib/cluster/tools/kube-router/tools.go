//go:build tools

// Package tools pins the programs that hack/cluster builds from this module.
package tools

import (
	_ "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
)
