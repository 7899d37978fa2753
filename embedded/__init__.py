"""The embedded model: its scenes, training and evaluation."""
