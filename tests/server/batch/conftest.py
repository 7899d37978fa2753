"""Fixtures of faulty storage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from server.batch import progress, runner
from tests.server.batch.faults import FaultyCalls


@pytest.fixture
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (progress, runner):
        monkeypatch.setattr(module, "STORE_RETRY_DELAY", 0.05)


@pytest.fixture
def fsync(monkeypatch: pytest.MonkeyPatch) -> FaultyCalls:
    faulty = FaultyCalls(os.fsync)
    monkeypatch.setattr(os, "fsync", faulty)
    return faulty


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> FaultyCalls:
    faulty = FaultyCalls(aiosqlite.Connection.execute_fetchall)

    def call(*values: Any, **fields: Any) -> Any:
        return faulty(*values, **fields)

    monkeypatch.setattr(aiosqlite.Connection, "execute_fetchall", call)
    return faulty


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 600 kB.

    Yields:
        Its folder.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
