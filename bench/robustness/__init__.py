"""Load, faults and malformed requests against a running server."""
