"""Strategy hooks inside vLLM's worker process."""
