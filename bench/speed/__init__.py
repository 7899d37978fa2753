"""Time and memory of the transformers engine."""
