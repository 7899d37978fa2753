"""Attacks on servers that this package starts: bodies, connections, images, addresses, keys and batches."""
