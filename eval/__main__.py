"""Entry point of `onlyseen-eval` and `python -m eval`."""

from __future__ import annotations

import sys

from eval.cli.app import app
from eval.errors import EvaluationError


def main() -> None:
    """Run the command line and print expected errors as one line."""
    try:
        app(prog_name="onlyseen-eval")
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # An output file cannot be written.
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
