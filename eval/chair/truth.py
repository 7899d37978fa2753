"""What is in the pictures: the annotated objects, and what the reference captions mention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.chair.reading import Reader
from eval.chair.vocabulary import Vocabulary
from eval.errors import InputError
from eval.inputs import Record, document, kind

ImageId = int | str


@dataclass(frozen=True)
class Annotated:
    """What the annotations say of the pictures asked for, before anybody has read their captions."""

    objects: dict[ImageId, frozenset[str]]  # a picture may be known and hold nothing
    captions: dict[ImageId, list[str]]
    folder: Path

    def nodes(self, read: Reader) -> dict[ImageId, frozenset[str]]:
        return {
            image: objects.union(mention.node for text in self.captions[image] for mention in read(text).mentions)
            for image, objects in self.objects.items()
        }

    def must_know(self, record: Record) -> None:
        """
        Raises:
            InputError: the picture of a caption is unknown, and the official script would take it for empty.
        """
        wanted = record.identifier("image_id")
        if wanted not in self.objects:
            raise record.error(
                f"{wanted!r} is no image of the annotations in {self.folder}{_hint(wanted, self)}", "image_id"
            )


def annotated(folder: Path, wanted: Collection[ImageId], vocabulary: Vocabulary) -> Annotated:
    """From all `instances*.json` and `captions*.json` of a folder, in COCO's format.

    Raises:
        InputError: a kind of annotation that is missing, or one that is malformed.
    """
    objects: defaultdict[ImageId, set[str]] = defaultdict(set)
    captions: dict[ImageId, list[str]] = {}
    # A picture that was asked for with the wrong type of id is looked up too, for the error to say so.
    wanted = {*wanted, *(str(each) for each in wanted), *(int(each) for each in wanted if _whole(each))}
    for file in _files(folder, "instances"):
        content = _Annotations(file)
        names = content.categories(vocabulary)
        for image in content.images(wanted):
            _ = objects[image]
        for place, image in content.annotated(wanted):
            category = place.identifier("category_id")
            if category not in names:
                raise place.error(f"{category!r} is none of the categories", "category_id")
            objects[image].add(names[category])
    for file in _files(folder, "captions"):
        content = _Annotations(file)
        for image in content.images(wanted):
            _ = objects[image]
        for place, image in content.annotated(wanted):
            if image not in objects and _twin(image) in objects:
                raise place.error(f"is {kind(image)}, and in the instances the same id is not", "image_id")
            _ = objects[image]
            captions.setdefault(image, []).append(place.text("caption"))
    known = {image: frozenset(nodes) for image, nodes in objects.items()}
    return Annotated(known, {image: captions.get(image, []) for image in known}, folder)


class _Annotations:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._content = document(file)

    def categories(self, vocabulary: Vocabulary) -> dict[Any, str]:
        names = {}
        for place in self._rows("categories"):
            name = place.text("name")
            if name not in vocabulary:
                raise place.error(f"{name!r} is not in the table of synonyms", "name")
            names[place.identifier("id")] = vocabulary[name]
        return names

    def images(self, wanted: Collection[ImageId]) -> Iterator[ImageId]:
        if "images" in self._content:
            yield from (image for place in self._rows("images") if (image := place.identifier("id")) in wanted)

    def annotated(self, wanted: Collection[ImageId]) -> Iterator[tuple[Record, ImageId]]:
        for place in self._rows("annotations"):
            image = place.identifier("image_id")
            if image in wanted:
                yield place, image

    def _rows(self, key: str) -> Iterator[Record]:
        rows = self._content.get(key)
        if not isinstance(rows, list):
            raise InputError(
                f"must be a list, not {kind(rows)}" if key in self._content else "is missing", self._file, None, key
            )
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise InputError(f"must be an object, not {kind(row)}", self._file, None, f"{key}[{index}]")
            yield Record(row, self._file, index=index, within=key)


def _files(folder: Path, what: str) -> list[Path]:
    found = sorted(
        each for each in folder.glob(f"{what}*.json") if each.stem == what or each.stem.startswith(f"{what}_")
    )
    if not found:
        raise InputError(f"holds no {what}_*.json" if folder.is_dir() else "is no folder", folder)
    return found


def _twin(image: ImageId) -> ImageId | None:
    """The same id as the other type."""
    return str(image) if isinstance(image, int) else int(image) if _whole(image) else None


def _whole(image: ImageId) -> bool:
    return isinstance(image, str) and image.isascii() and image.isdigit() and len(image) < 19


def _hint(wanted: ImageId, known: Annotated) -> str:
    if isinstance(wanted, int) and str(wanted) in known.objects:
        return ", which has this as a text"
    if isinstance(wanted, str) and _whole(wanted) and int(wanted) in known.objects:
        return ", which has this as a number"
    return ""
