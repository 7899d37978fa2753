"""Runs a command line, and prints expected errors as one line."""

from __future__ import annotations

import sys

from typer import Typer

from eval.errors import EvaluationError


def run_app(app: Typer, name: str) -> None:
    """Run a command line.

    Args:
        app: The commands.
        name: Name of the program in its help.

    Raises:
        OSError: An error that names no file.
    """
    try:
        app(prog_name=name)
    except EvaluationError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # An output file cannot be written.
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}")
