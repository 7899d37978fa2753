"""MME (arXiv:2306.13394): perception and cognition questions with yes/no answers."""
