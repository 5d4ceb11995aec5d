"""Which worker holds which model. Pure."""
