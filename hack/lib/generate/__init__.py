"""`hack/generate`: files that follow from other files."""
