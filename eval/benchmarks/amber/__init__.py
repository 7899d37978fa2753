"""AMBER (arXiv:2311.07397): captions and yes/no questions about the same images, scored with its official files."""
