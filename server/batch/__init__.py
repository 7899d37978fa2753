"""Files and batches: their store, and the runner that answers batches next to the requests of clients."""
