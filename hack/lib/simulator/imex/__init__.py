"""Simulated IMEX: nvidia-imex, nvidia-imex-ctl, and a test of shared memory for pods. Static Go programs."""
