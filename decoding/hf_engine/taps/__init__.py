"""Torch hooks that observe or edit the inside of a forward pass."""
