"""A fingerprint of the served weights. It distinguishes two models of the same name by the content of their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

BLOBS = "blobs"  # in this folder, the hub's cache names each file by the hash of its content
LENGTH = 16  # hexadecimal digits


def fingerprint_weights(*models: str) -> str | None:
    """Hash the names and contents of the files of models. Slow: call it in a thread.

    Args:
        *models: Folders or hub ids.

    Returns:
        `LENGTH` hexadecimal digits, or None if a model is not on this machine.
    """
    total = hashlib.sha256()
    for model in models:
        folder = Path(model) if Path(model).is_dir() else find_cached_snapshot(model)
        if folder is None:
            return None
        for file in sorted(entry for entry in folder.iterdir() if entry.is_file()):
            total.update(f"{file.name} {hash_file(file)}\n".encode())
    return total.hexdigest()[:LENGTH]


def find_cached_snapshot(model: str) -> Path | None:
    """Return the folder of a hub id in the local cache, if it is there."""
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def hash_file(file: Path) -> str:
    """Return the hash of a file's content. The hub's cache has it as the file's name already."""
    target = file.resolve()
    if target.parent.name == BLOBS:
        return target.name
    with target.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
