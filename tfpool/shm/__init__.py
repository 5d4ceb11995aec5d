"""Shared memory: where bytes lie (layout, pure), the memory itself (arena), and the bell that tells of it."""
