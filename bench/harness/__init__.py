"""Shared parts of the benchmarks: models, servers, requests and the tables of the documentation."""
