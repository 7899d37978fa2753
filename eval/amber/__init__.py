"""AMBER (arXiv:2311.07397): captions and yes/no questions on the same pictures, scored from its own files."""
