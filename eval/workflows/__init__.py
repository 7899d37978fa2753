"""Run, resume, verify, merge and export evaluations."""
