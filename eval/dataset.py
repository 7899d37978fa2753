"""A folder with pictures and annotations: the scenes of this repository, or official files in the same places."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from eval.errors import InputError

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "scenes"
PICTURES = ("images", "val2014", "image", ".")


def located(data: str) -> Path:
    """`embedded`, or a folder. Raises: InputError: there is none."""
    folder = EMBEDDED if data == "embedded" else Path(data).expanduser()
    if not folder.is_dir():
        raise InputError("there is no such folder", folder, None, "--data")
    return folder


def refuse_others(pictures: Iterable[Path]) -> None:
    """Raises: InputError: one is no picture, which a server might answer all the same."""
    from PIL import Image

    for file in dict.fromkeys(pictures):
        try:
            with Image.open(file):
                pass
        except OSError as error:
            raise InputError(f"is no picture: {error.strerror or 'its format is not known'}", file) from error


class Pictures:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _files(self) -> dict[str, Path]:
        places = [self.folder / place for place in reversed(PICTURES) if (self.folder / place).is_dir()]
        return {file.name: file for place in places for file in place.iterdir() if file.is_file()}

    def find(self, name: str) -> Path | None:
        return self._files.get(Path(name).name)
