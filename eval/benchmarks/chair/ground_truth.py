"""The objects in the images: the annotated ones, and those that the reference captions mention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks.chair.object_extraction import Extractor
from eval.benchmarks.chair.vocabulary import ObjectVocabulary
from eval.core.jsonl import JsonRecord, get_json_type, read_object
from eval.errors import InputError

ImageId = int | str


@dataclass(frozen=True)
class CocoAnnotations:
    """The annotations of the requested images. Reference captions are not parsed yet.

    Attributes:
        objects: Annotated nodes of each image. The set of a known image may be empty.
        captions: Reference captions of each image.
        folder: Folder of the annotations.
    """

    objects: dict[ImageId, frozenset[str]]
    captions: dict[ImageId, list[str]]
    folder: Path

    def collect_nodes(self, extract: Extractor) -> dict[ImageId, frozenset[str]]:
        """Collect the nodes of each image: the annotated ones, and those in its reference captions."""
        return {
            image: objects.union(mention.node for text in self.captions[image] for mention in extract(text).mentions)
            for image, objects in self.objects.items()
        }

    def check_image(self, record: JsonRecord) -> None:
        """Raise `InputError` if the image of a caption is unknown. The official script treats it as empty."""
        image = record.get_identifier("image_id")
        if image not in self.objects:
            raise record.build_error(
                f"{image!r} is not an image of the annotations in {self.folder}{_type_hint(image, self)}", "image_id"
            )


def load_annotations(folder: Path, images: Collection[ImageId], vocabulary: ObjectVocabulary) -> CocoAnnotations:
    """Load all `instances*.json` and `captions*.json` of a folder, in COCO's format.

    A missing or malformed file raises `InputError`.

    Args:
        folder: The folder.
        images: Ids of the requested images.
        vocabulary: The table of synonyms. It must have the name of every category.

    Returns:
        The annotations of the requested images.
    """
    objects: defaultdict[ImageId, set[str]] = defaultdict(set)
    captions: dict[ImageId, list[str]] = {}
    # Ids are also looked up as the other type, so that the error can name a wrong type.
    images = {*images, *(str(image) for image in images), *(int(image) for image in images if _is_integer(image))}
    for file in _find_files(folder, "instances"):
        content = _AnnotationFile(file)
        categories = content.read_categories(vocabulary)
        for image in content.iter_images(images):
            _ = objects[image]
        for annotation, image in content.iter_annotations(images):
            category = annotation.get_identifier("category_id")
            if category not in categories:
                raise annotation.build_error(f"{category!r} is not one of the categories", "category_id")
            objects[image].add(categories[category])
    for file in _find_files(folder, "captions"):
        content = _AnnotationFile(file)
        for image in content.iter_images(images):
            _ = objects[image]
        for annotation, image in content.iter_annotations(images):
            if image not in objects and _convert_id(image) in objects:
                raise annotation.build_error(
                    f"is {get_json_type(image)}, but the instances have the same id as another type", "image_id"
                )
            _ = objects[image]
            captions.setdefault(image, []).append(annotation.get_string("caption"))
    nodes = {image: frozenset(names) for image, names in objects.items()}
    return CocoAnnotations(nodes, {image: captions.get(image, []) for image in nodes}, folder)


class _AnnotationFile:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._content = read_object(file)

    def read_categories(self, vocabulary: ObjectVocabulary) -> dict[Any, str]:
        categories = {}
        for row in self._iter_rows("categories"):
            name = row.get_string("name")
            if name not in vocabulary:
                raise row.build_error(f"{name!r} is not in the table of synonyms", "name")
            categories[row.get_identifier("id")] = vocabulary[name]
        return categories

    def iter_images(self, images: Collection[ImageId]) -> Iterator[ImageId]:
        if "images" in self._content:
            yield from (image for row in self._iter_rows("images") if (image := row.get_identifier("id")) in images)

    def iter_annotations(self, images: Collection[ImageId]) -> Iterator[tuple[JsonRecord, ImageId]]:
        for row in self._iter_rows("annotations"):
            image = row.get_identifier("image_id")
            if image in images:
                yield row, image

    def _iter_rows(self, key: str) -> Iterator[JsonRecord]:
        rows = self._content.get(key)
        if not isinstance(rows, list):
            problem = f"must be a list, not {get_json_type(rows)}" if key in self._content else "is missing"
            raise InputError(problem, self._file, None, key)
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise InputError(f"must be an object, not {get_json_type(row)}", self._file, None, f"{key}[{index}]")
            yield JsonRecord(row, self._file, index=index, parent=key)


def _find_files(folder: Path, name: str) -> list[Path]:
    files = sorted(
        file for file in folder.glob(f"{name}*.json") if file.stem == name or file.stem.startswith(f"{name}_")
    )
    if not files:
        raise InputError(f"has no {name}_*.json" if folder.is_dir() else "is not a folder", folder)
    return files


def _convert_id(image: ImageId) -> ImageId | None:
    """Return an id as the other type, or None."""
    return str(image) if isinstance(image, int) else int(image) if _is_integer(image) else None


def _is_integer(image: ImageId) -> bool:
    return isinstance(image, str) and image.isascii() and image.isdigit() and len(image) < 19


def _type_hint(image: ImageId, annotations: CocoAnnotations) -> str:
    if isinstance(image, int) and str(image) in annotations.objects:
        return ", which has this id as a string"
    if isinstance(image, str) and _is_integer(image) and int(image) in annotations.objects:
        return ", which has this id as a number"
    return ""
