"""Builder of POPE's questions, equivalent to main.py and utils.py of AoiDragon/POPE, with a seed.

For every image, the questions name the first objects of its list. Each is followed by a question about an object that
is not in the image:

- random: drawn from all objects of the file;
- popular: the most frequent object of the file;
- adversarial: the object that occurs most often together with the object of the question before.

Objects in the image and objects of earlier questions are skipped. Ties keep the order of first occurrence, of objects
or of pairs. If no object is left, one is drawn at random. An object that a list has twice counts twice.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.core.jsonl import read_records

Split = Literal["random", "popular", "adversarial"]
SPLITS: tuple[Split, ...] = ("random", "popular", "adversarial")
TEMPLATE = "Is there a {} in the image?"


class NoAbsentObjectError(ValueError):
    """An image has so many objects that no absent object is left for a question."""


@dataclass(frozen=True)
class ImageObjects:
    """An image by its file name, and the objects in it."""

    image: str
    objects: Sequence[str]


@dataclass(frozen=True)
class QuestionTemplate:
    """The text of a question.

    Attributes:
        template: Text in which `{}` is replaced by the object.
        official_article: Reproduce the official error, which replaces every `a`: "Is there an apple in the imange?".
    """

    template: str = TEMPLATE
    official_article: bool = False

    def fill(self, name: str) -> str:
        """Return the question about an object."""
        if self.official_article:
            template = self.template.replace("a", "an") if name[0] in "aeiou" else self.template
        else:
            template = self.template.replace("a {}", "an {}") if name[0].lower() in "aeiou" else self.template
        return template.replace("{}", name)


class PopeBuilder:
    """Builds the splits. All splits draw from one random generator in turn.

    Args:
        images: Images with objects. Images with fewer than `per_image` objects are left out.
        per_image: Number of present objects for each image.
        seed: Seed of the random generator.
        sample: Number of images to draw. None uses all in order.

    Raises:
        ValueError: There are fewer images than `sample`, or none.
    """

    def __init__(
        self, images: Sequence[ImageObjects], per_image: int = 3, seed: int = 0, sample: int | None = None
    ) -> None:
        self._random = random.Random(seed)
        usable = [image for image in images if len(image.objects) >= per_image]
        if len(usable) < (sample or 1):
            raise ValueError(f"{len(usable)} images have {per_image} objects or more, and {sample or 1} are needed")
        self._images = usable if sample is None else self._random.sample(usable, sample)
        self._per_image = per_image
        co_occurrences: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for image in self._images:
            for name in image.objects:
                co_occurrences[name].update(other for other in image.objects if other != name)
        frequencies = Counter(name for image in self._images for name in image.objects)
        self._vocabulary = list(frequencies)
        # Both sorts are stable, and Counter keeps the order of first occurrence, which decides ties.
        self._by_frequency = [name for name, _ in frequencies.most_common()]
        self._by_co_occurrence = {
            name: [other for other, _ in others.most_common()] for name, others in co_occurrences.items()
        }

    def build_questions(self, split: Split, template: QuestionTemplate) -> Iterator[dict[str, int | str]]:
        """Build the questions of a split.

        Args:
            split: The split.
            template: The text of the questions.

        Yields:
            Questions in the official format. Each of the first `per_image` objects of an image gives a question with
            the label yes and one with the label no.
        """
        number = 0
        for image in self._images:
            used: list[str] = []
            for present in image.objects[: self._per_image]:
                used.append(present)
                used.append(self._choose_absent(split, image, present, used))
                for name, label in zip(used[-2:], ("yes", "no"), strict=True):
                    number += 1
                    text = template.fill(name)
                    yield {"question_id": number, "image": image.image, "text": text, "label": label}

    def _choose_absent(self, split: Split, image: ImageObjects, present: str, used: list[str]) -> str:
        excluded = {*image.objects, *used}
        ranked = {
            "random": [],
            "popular": self._by_frequency,
            "adversarial": self._by_co_occurrence.get(present, []),
        }[split]
        for name in ranked:
            if name not in excluded:
                return name
        if excluded.issuperset(self._vocabulary):
            raise NoAbsentObjectError(f"{image.image}: every object is in the image or in an earlier question")
        # The official code redraws until the object fits. The same loop gives the same draws for the same seed.
        while (name := self._random.choice(self._vocabulary)) in excluded:
            pass
        return name


def read_image_objects(file: Path) -> list[ImageObjects]:
    """Read `{"image": ..., "objects": [...]}` lines. Invalid lines raise `InputError`."""
    images = []
    for record in read_records(file):
        objects = record.get_strings("objects")
        if not all(objects):
            raise record.build_error("has an empty name", "objects")
        images.append(ImageObjects(record.get_string("image"), objects))
    return images
