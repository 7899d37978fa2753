"""Score the embedded model."""
