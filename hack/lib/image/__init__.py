"""`hack/image`: container images as OCI archives, made of plain folders.

A folder becomes a layer, layers and a configuration become an archive that `ctr images import` reads. Every layer lies
in the cache under a key of all its inputs, so that a change of our code rebuilds the smallest layer only; and equal
inputs give equal bytes, so that a runtime which has a layer takes no second copy of it.
"""
