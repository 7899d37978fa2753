"""Entry point of `onlyseen-eval` and `python -m eval`."""

from __future__ import annotations

from eval.cli.app import app
from eval.entry_point import run_app


def main() -> None:
    """Run the command line."""
    run_app(app, "onlyseen-eval")


if __name__ == "__main__":
    main()
