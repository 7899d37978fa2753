"""The KV cache of the running batch and the prefix cache."""
