"""The front for HTTP and gRPC: TensorFlow Serving's interfaces, the Open Inference Protocol, metrics, the console."""
