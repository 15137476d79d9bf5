"""`hack/check`: the static checks, each a named step."""
