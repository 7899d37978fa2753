"""Which weights answer: two models under one name are told apart by what their files hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

BLOBS = "blobs"  # the hub's cache names a file there by the hash of what it holds
LENGTH = 16  # hexadecimal digits


def fingerprint(*models: str) -> str | None:
    """Of the files of folders or cached hub ids, by name and content; None where one of them lies nowhere here."""
    total = hashlib.sha256()
    for model in models:
        folder = Path(model) if Path(model).is_dir() else cached(model)
        if folder is None:
            return None
        for file in sorted(each for each in folder.iterdir() if each.is_file()):
            total.update(f"{file.name} {content(file)}\n".encode())
    return total.hexdigest()[:LENGTH]


def cached(model: str) -> Path | None:
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def content(file: Path) -> str:
    actual = file.resolve()
    if actual.parent.name == BLOBS:
        return actual.name
    with actual.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
