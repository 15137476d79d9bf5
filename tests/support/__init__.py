"""Helpers of tests that need a cluster."""
