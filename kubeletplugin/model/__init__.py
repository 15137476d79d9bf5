"""Decisions on values: no IO, no clock, no randomness, no logging."""
