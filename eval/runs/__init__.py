"""Plan a run, send its requests to a server and store the answers."""
