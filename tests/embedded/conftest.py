"""Fixtures for tests of scenes."""

import pytest

from embedded.data.renderer import FONT
from tests.system_packages import install_package


@pytest.fixture(scope="session")
def font() -> None:
    """Install the emoji font that scenes are rendered with, or skip the test."""
    package = "fonts-noto-color-emoji"
    if not FONT.exists():
        install_package(package)
    if not FONT.exists():
        pytest.skip(f"{package} is not installed, and apt could not install it")
