"""Simulated hardware beneath the vendors' own libraries: `hack/simulator`."""
