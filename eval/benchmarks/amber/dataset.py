"""The official files of AMBER: queries, annotations and images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.benchmarks.amber.answers import GENERATIVE, get_annotation
from eval.core.dataset import ImageFolder
from eval.core.jsonl import JsonRecord, read_records
from eval.errors import InputError

IMAGE_FOLDERS = ("image", "images", ".")


@dataclass(frozen=True)
class AmberQuery:
    """A query with its annotation and its image."""

    record: JsonRecord
    annotation: JsonRecord
    image: Path

    @property
    def id(self) -> int | str:
        """The id, which is the position of the annotation."""
        return self.record.get_identifier("id")

    @property
    def text(self) -> str:
        """The text of the query."""
        return self.record.get_string("query")

    @property
    def type(self) -> str:
        """The type of the annotation."""
        return self.annotation.get_string("type")


class AmberFolder:
    """A copy of the authors' repository, or of its folder `data`.

    Args:
        data: The folder. Images are in its folder `image` or `images`, beside or in `data`.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.files = data / "data" if (data / "data" / "annotations.json").is_file() else data

    @property
    def annotations(self) -> Path:
        """The file annotations.json."""
        return self.find_file("annotations.json")

    def find_file(self, name: str) -> Path:
        """Return a file of the folder.

        Args:
            name: Its name.

        Returns:
            The file.

        Raises:
            InputError: It does not exist.
        """
        if not (file := self.files / name).is_file():
            raise InputError(f"there is no {name}", self.files)
        return file

    def list_query_files(self, kind: str) -> list[Path]:
        """List the files with the queries of a kind.

        Args:
            kind: `generative` or `discriminative`.

        Returns:
            The file of the kind, else the file of all queries, else the files of the parts of the kind.

        Raises:
            InputError: There is none.
        """
        folder = self.files / "query" if (self.files / "query").is_dir() else self.files
        for name in (f"query_{kind}.json", "query_all.json"):
            if (folder / name).is_file():
                return [folder / name]
        if parts := sorted(folder.glob(f"query_{kind}-*.json")):
            return parts
        raise InputError(f"there is no query_{kind}.json", folder)

    def read_queries(self, kind: str) -> list[AmberQuery]:
        """Read the queries of a kind with their annotations and images.

        Args:
            kind: `generative` or `discriminative`.

        Returns:
            The queries, in the order of the files.

        Raises:
            InputError: There is none, an id is unknown or repeated, or an image is missing.
        """
        annotations = read_records(self.annotations)
        queries: dict[int | str, AmberQuery] = {}
        for record in [record for file in self.list_query_files(kind) for record in read_records(file)]:
            annotation = get_annotation(record, annotations)
            if (annotation.get_string("type") == GENERATIVE) != (kind == GENERATIVE):
                continue
            number = record.get_identifier("id")
            if number in queries:
                raise record.build_error(f"{number} is repeated", "id")
            queries[number] = AmberQuery(record, annotation, self._find_image(record))
        if not queries:
            raise InputError(f"there is no {kind} query", self.list_query_files(kind)[0])
        return list(queries.values())

    def _find_image(self, record: JsonRecord) -> Path:
        name = record.get_string("image")
        for folder in self._image_folders:
            if (image := folder.find_image(name)) is not None:
                return image
        raise record.build_error(f"there is no image {name} under {self.data}", "image")

    @cached_property
    def _image_folders(self) -> list[ImageFolder]:
        return [ImageFolder(folder, IMAGE_FOLDERS) for folder in dict.fromkeys([self.data, self.files])]
