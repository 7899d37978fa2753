"""Strategies that edit what leaves a layer."""
