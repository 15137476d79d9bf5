"""The cluster program: ComputeDomains and node partitioning."""
