"""The image-text matcher that computes relevance maps."""
