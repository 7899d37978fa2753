"""SHA-256 hashes of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path


def hash_file(file: Path) -> str:
    """Hash the content of a file. The result is cached until size or modification time change."""
    status = file.stat()
    return _hash_content(file, status.st_mtime_ns, status.st_size)


@cache
def _hash_content(file: Path, modified: int, size: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def hash_json(value: object) -> str:
    """Hash any JSON value. The order of object keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
