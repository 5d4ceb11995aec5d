"""SavedModels compiled ahead, in a process of its own: frozen, optimized once, proven equal, kept in the store."""
