"""kubelet's gRPC protocols: our own .proto files and what is generated from them."""
