"""gRPC: TensorFlow Serving's services, health and reflection."""
