"""The server process's side of the vLLM engine: build requests, parse outputs."""
