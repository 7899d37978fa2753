"""Strategies that act on the attention of the main row."""
