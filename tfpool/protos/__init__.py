"""TensorFlow's and TensorFlow Serving's messages, field for field, without TensorFlow: what its files and wires hold.

``scripts/protos`` makes the ``_pb2`` modules from the ``.proto`` files. The package is ``tfpool``, so that they may lie
beside TensorFlow's own in one process.
"""
