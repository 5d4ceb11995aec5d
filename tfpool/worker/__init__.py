"""A worker process: owns some of the models and runs their batches where they lie, in shared memory."""
