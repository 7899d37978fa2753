"""Data types, statistics and file formats that all benchmarks share."""
