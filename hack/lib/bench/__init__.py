"""Benchmarks of what runs on every node: a real API server, the simulated library, and the kubelet played by us."""
