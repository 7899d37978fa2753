"""Attention of single tokens that is computed a second time, from the keys and values in the KV cache."""
