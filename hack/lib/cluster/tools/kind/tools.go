//go:build tools

// Package tools pins the programs that hack/cluster builds from this module.
package tools

import _ "sigs.k8s.io/kind"
