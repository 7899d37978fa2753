"""List the installed strategies, those of other packages included."""

from __future__ import annotations

import sys


def main() -> None:
    """Print each strategy with a summary. Exit with 1 if an entry point is broken."""
    from decoding.registry import get_summary, load_registry

    registry = load_registry()
    for name, strategy_class in registry.strategies.items():
        print(f"{name:<12}{get_summary(strategy_class)}")
    for sentence in registry.broken.values():
        print(sentence, file=sys.stderr)
    sys.exit(1 if registry.broken else 0)
