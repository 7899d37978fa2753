"""Published tables: the settings that reproduce them, and the numbers beside those of a run."""
