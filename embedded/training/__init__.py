"""Train the embedded model from scratch."""
