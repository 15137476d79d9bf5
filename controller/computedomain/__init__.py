"""ComputeDomains: formed around scheduled pods, torn down when they finish."""
