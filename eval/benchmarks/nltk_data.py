"""Checks of the data packages that nltk installs separately."""

from __future__ import annotations

from collections.abc import Iterable

from eval.errors import EvaluationError

PATHS = {
    "punkt_tab": "tokenizers/punkt_tab",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "wordnet": "corpora/wordnet",
}


def is_installed(package: str) -> bool:
    """Return whether nltk finds a data package, as a folder or as a zip file."""
    import nltk

    for path in (PATHS[package], f"{PATHS[package]}.zip"):
        try:
            nltk.data.find(path)
        except LookupError:
            continue
        return True
    return False


def require_packages(packages: Iterable[str], user: str) -> None:
    """Check that data packages of nltk are installed.

    Args:
        packages: Names of the packages.
        user: The feature that needs them, for the message.

    Raises:
        EvaluationError: A package is missing. The message has the command that installs it.
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise EvaluationError(f"{user} needs data of nltk: python -m nltk.downloader {' '.join(missing)}")
