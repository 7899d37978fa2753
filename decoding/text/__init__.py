"""Encode prompts, decode tokens, and constrain answers to a grammar."""
