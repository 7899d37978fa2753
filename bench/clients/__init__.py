"""Real client packages against a running server. `bench/clients/run.sh` runs all of them."""
