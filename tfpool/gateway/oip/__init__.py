"""The Open Inference Protocol, over HTTP and gRPC: the codecs, which are pure, and the rooms that use them."""
