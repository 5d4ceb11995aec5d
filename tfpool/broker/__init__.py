"""The broker process: one thread between clients and workers. It reads headers, never tensors."""
