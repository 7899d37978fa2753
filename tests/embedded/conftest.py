import pytest

from embedded.picture import FONT
from tests.program import install


@pytest.fixture(scope="session")
def font() -> None:
    """The pictograms that scenes are drawn with."""
    package = "fonts-noto-color-emoji"
    if not FONT.exists():
        install(package)
    if not FONT.exists():
        pytest.skip(f"{package} is not installed, and apt could not install it")
