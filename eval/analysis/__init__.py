"""Compare strategies from stored answers."""
