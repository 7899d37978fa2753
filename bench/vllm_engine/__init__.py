"""Throughput of the vLLM engine beside vLLM itself."""
