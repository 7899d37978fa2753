from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.decoding.families.checkpoints import write


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, written when it is first asked for. To be read only."""
    return cache(lambda name: write(name, tmp_path_factory.mktemp(name)))
