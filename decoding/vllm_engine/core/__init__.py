"""Gang scheduling in vLLM's engine core process."""
