"""Find the things that an answer names, so that the model can be asked about each."""
