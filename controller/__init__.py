"""The cluster program: ComputeDomains, node partitioning, fabric partitions, placement."""
