"""Entry point of `onlyseen-batch` and `python -m eval.bulk`."""

from __future__ import annotations

import sys

from eval.bulk.cli import app
from eval.errors import EvaluationError


def main() -> None:
    """Run the command line and print expected errors as one line."""
    try:
        app(prog_name="onlyseen-batch")
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # An output file cannot be written.
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
