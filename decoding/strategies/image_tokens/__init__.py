"""Strategies whose branch sees a part of the image tokens."""
