"""Folders with images and annotations: the embedded scenes, or official files in the same layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from eval.errors import InputError

EMBEDDED_SCENES = Path(__file__).resolve().parents[2] / "embedded" / "scenes"
IMAGE_FOLDERS = ("images", "val2014", "image", ".")


def resolve_data_folder(data: str) -> Path:
    """Return the folder that `--data` names.

    Args:
        data: `embedded`, or the path of a folder.

    Returns:
        The folder.

    Raises:
        InputError: The folder does not exist.
    """
    folder = EMBEDDED_SCENES if data == "embedded" else Path(data).expanduser()
    if not folder.is_dir():
        raise InputError("no such folder", folder, None, "--data")
    return folder


def check_images(images: Iterable[Path | None]) -> None:
    """Check that every file is an image, because a server might answer a request with a broken one.

    Args:
        images: Files; repeated ones are checked once. None is no image.

    Raises:
        InputError: A file is not an image.
    """
    from PIL import Image

    for file in dict.fromkeys(images):
        if file is None:
            continue
        try:
            with Image.open(file):
                pass
        except OSError as error:
            raise InputError(f"is not an image: {error.strerror or 'unknown format'}", file) from error


class ImageFolder:
    """The images below a data folder, found by file name.

    Args:
        folder: The data folder.
        names: Names of the folders in it, the first one first.
    """

    def __init__(self, folder: Path, names: Sequence[str] = IMAGE_FOLDERS) -> None:
        self.folder = folder
        self.names = names

    @cached_property
    def _files(self) -> dict[str, Path]:
        folders = [self.folder / name for name in reversed(self.names) if (self.folder / name).is_dir()]
        return {file.name: file for folder in folders for file in folder.iterdir() if file.is_file()}

    def find_image(self, name: str) -> Path | None:
        """Return the file with the name, or None."""
        return self._files.get(Path(name).name)
