"""CPU performance: threads, heap settings and packed weights."""
