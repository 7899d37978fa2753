"""onlyseen-eval, also `python -m eval`."""

from __future__ import annotations

import sys

from eval.cli import app
from eval.errors import EvaluationError


def main() -> None:
    try:
        app(prog_name="onlyseen-eval")
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a place that cannot be written
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
