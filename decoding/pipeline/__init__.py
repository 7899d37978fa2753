"""Run a stack of strategies against an engine."""
