"""CHAIR (arXiv:1809.02156): which of the objects that a caption mentions are not in the picture."""
