"""A folder with pictures and annotations: the scenes of this repository, or official files in the same places."""

from __future__ import annotations

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


class Pictures:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _files(self) -> dict[str, Path]:
        places = [self.folder / place for place in reversed(PICTURES) if (self.folder / place).is_dir()]
        return {file.name: file for place in places for file in place.iterdir() if file.is_file()}

    def find(self, name: str) -> Path | None:
        return self._files.get(Path(name).name)
