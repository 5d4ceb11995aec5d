"""Compiled models on disk: content-addressed, checked before use, shared by all workers and pools of one user."""
