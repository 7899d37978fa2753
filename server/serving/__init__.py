"""Turn a parsed request into generated text."""
