"""Scenes: sampling, rendering, texts and annotations."""
