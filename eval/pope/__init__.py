"""POPE, polling about objects (arXiv:2305.10355): its questions, its parsers, its metrics."""
