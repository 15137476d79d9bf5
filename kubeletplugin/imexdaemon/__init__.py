"""The daemon of one ComputeDomain on one node: runs and reconfigures nvidia-imex."""
