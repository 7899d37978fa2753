"""Find the things that an answer names, and check each with a question to the model."""
