"""The command line of the evaluation."""
