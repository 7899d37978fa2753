"""Entry point of `onlyseen-batch` and `python -m eval.bulk`."""

from __future__ import annotations

from eval.bulk.cli import app
from eval.entry_point import run_app


def main() -> None:
    """Run the command line."""
    run_app(app, "onlyseen-batch")


if __name__ == "__main__":
    main()
