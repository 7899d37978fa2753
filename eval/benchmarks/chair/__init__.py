"""CHAIR (arXiv:1809.02156): the share of objects in a caption that are not in the image."""
