"""`hack/demo`."""
