"""Real Kubernetes clusters for trials and tests: on this machine's own kernel, on kind, or one that exists."""
