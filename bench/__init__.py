"""Benchmarks of speed, quality and robustness."""
