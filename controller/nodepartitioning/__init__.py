"""Nodes whose GPUs are repartitioned as a whole."""
