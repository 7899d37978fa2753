"""Errors that a strategy may raise in `prepare`, `run` and `stream`."""

from decoding.errors import BadRequest, EngineFailed, OnlySeenError, Overloaded, StrategyFailed, Unsupported

__all__ = ["BadRequest", "EngineFailed", "OnlySeenError", "Overloaded", "StrategyFailed", "Unsupported"]
