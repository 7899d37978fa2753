"""Builds POPE's questions as AoiDragon/POPE main.py and utils.py do, seeded.

Of every image the first objects of its list are asked for, each followed by one object that is not there:

- random: drawn from all objects of the file;
- popular: the most frequent object of the file;
- adversarial: the object that is seen most often together with the one just asked for;

always the first one that is neither in the image nor asked for already. Ties keep the order in which objects, or pairs,
were first met. Where no object is left, one is drawn at random. An object that a list holds twice counts twice.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.inputs import records

Split = Literal["random", "popular", "adversarial"]
SPLITS: tuple[Split, ...] = ("random", "popular", "adversarial")
TEMPLATE = "Is there a {} in the image?"


class NothingToAskFor(ValueError):
    """An image that holds so many of the objects that too few are left to ask for in vain."""


@dataclass(frozen=True)
class Scene:
    """A picture by its file name, and what is in it."""

    image: str
    objects: Sequence[str]


@dataclass(frozen=True)
class Wording:
    """`official_article` also repeats the official slip of replacing every `a`: "Is there an apple in the imange?"."""

    template: str = TEMPLATE
    official_article: bool = False

    def question(self, name: str) -> str:
        if self.official_article:
            template = self.template.replace("a", "an") if name[0] in "aeiou" else self.template
        else:
            template = self.template.replace("a {}", "an {}") if name[0].lower() in "aeiou" else self.template
        return template.replace("{}", name)


class Builder:
    """The vocabulary and the counts of some scenes, and the one source of chance that all splits draw from in turn."""

    def __init__(self, scenes: Sequence[Scene], per_image: int = 3, seed: int = 0, sample: int | None = None) -> None:
        """Scenes with fewer than `per_image` objects are left out; of the others `sample` are drawn, or all are taken.

        Raises:
            ValueError: fewer scenes than asked for, or none.
        """
        self._random = random.Random(seed)
        rich = [scene for scene in scenes if len(scene.objects) >= per_image]
        if len(rich) < (sample or 1):
            raise ValueError(f"{len(rich)} images hold {per_image} objects or more, and {sample or 1} are needed")
        self._scenes = rich if sample is None else self._random.sample(rich, sample)
        self._per_image = per_image
        together: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for scene in self._scenes:
            for one in scene.objects:
                together[one].update(other for other in scene.objects if other != one)
        seen = Counter(each for scene in self._scenes for each in scene.objects)
        self._vocabulary = list(seen)
        # Both sorts are stable and Counter keeps the order of first meeting, which settles the ties.
        self._by_frequency = [name for name, _ in seen.most_common()]
        self._by_company = {one: [other for other, _ in others.most_common()] for one, others in together.items()}

    def questions(self, split: Split, wording: Wording) -> Iterator[dict[str, int | str]]:
        """In the official format; two for each of the first `per_image` objects of an image, a yes and a no."""
        number = 0
        for scene in self._scenes:
            asked: list[str] = []
            for present in scene.objects[: self._per_image]:
                asked.append(present)
                asked.append(self._absent(split, scene, present, asked))
                for name, label in zip(asked[-2:], ("yes", "no"), strict=True):
                    number += 1
                    text = wording.question(name)
                    yield {"question_id": number, "image": scene.image, "text": text, "label": label}

    def _absent(self, split: Split, scene: Scene, present: str, asked: list[str]) -> str:
        taken = {*scene.objects, *asked}
        ordered = {"random": [], "popular": self._by_frequency, "adversarial": self._by_company.get(present, [])}[split]
        for name in ordered:
            if name not in taken:
                return name
        if taken.issuperset(self._vocabulary):
            raise NothingToAskFor(f"{scene.image} holds or was asked for every object that there is")
        # Redrawn until it fits, as the official code does: with its seed and its scenes, its draws come out.
        while (name := self._random.choice(self._vocabulary)) in taken:
            pass
        return name


def scenes(file: Path) -> list[Scene]:
    """From `{"image": ..., "objects": [...]}` lines.

    Raises:
        InputError: names the line and the field.
    """
    found = []
    for record in records(file):
        objects = record.texts("objects")
        if not all(objects):
            raise record.error("holds an empty name", "objects")
        found.append(Scene(record.text("image"), objects))
    return found
