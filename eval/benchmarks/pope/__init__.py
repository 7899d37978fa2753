"""POPE, polling-based object probing evaluation (arXiv:2305.10355): question builder, answer parsers and metrics."""
