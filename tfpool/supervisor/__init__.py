"""The supervisor: starts the broker, the zygote and the workers, notices who dies, and ends them all."""
