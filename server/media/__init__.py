"""Load, check and cache images."""
