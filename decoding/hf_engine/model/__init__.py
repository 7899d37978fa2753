"""Load a checkpoint and run its forward pass."""
