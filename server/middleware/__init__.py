"""ASGI middleware: API keys, body limits, request ids, errors and security headers."""
