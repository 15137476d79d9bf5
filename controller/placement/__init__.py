"""Where pods that share a fabric should run."""
