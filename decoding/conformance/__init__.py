"""Check that a strategy keeps the rules of the plugin interface."""
