"""Benchmarks: questions, answer parsers and metrics."""
