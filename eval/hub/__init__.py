"""Benchmarks as tables of the Hugging Face hub: parquet files and datasets with questions and images in one row."""
