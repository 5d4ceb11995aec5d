"""What crosses between processes, as bytes: messages, request keys, tensors. Pure: no socket is opened here."""
