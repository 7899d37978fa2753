from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.decoding.families.checkpoints import write_checkpoint
from tests.decoding.hf_engine.checkpoint import write


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the folder of its checkpoint, written at the first call. It is read-only."""
    return cache(lambda name: write_checkpoint(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a checkpoint of the tiny random model."""
    folder = tmp_path_factory.mktemp("tiny")
    write(folder)
    return folder
