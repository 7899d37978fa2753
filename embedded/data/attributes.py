"""Attributes of objects that questions are about: their number, their position and their colour."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from embedded.data.categories import BY_NAME
from embedded.data.renderer import RenderedScene, SceneObject
from embedded.data.text_templates import (
    BALANCED_QUESTIONS,
    NUMBER_WORDS,
    POSITION_PHRASES,
    SHORT_ANSWER_SUFFIX,
    QAPair,
    sample_absent_category,
)

MAX_COUNT = 5
CELL_PHRASES = tuple(phrase for row in POSITION_PHRASES for phrase in row)
CELL_MARGIN = 0.04
"""Minimum distance of an object's center to a border between grid cells, in image sides; nearer ones have no cell."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "white", "gray")
HUES = {"red": 0, "orange": 30, "yellow": 50, "green": 95, "blue": 210}
COLOURS_BY_CATEGORY = {
    "car": ("red", "yellow"),
    "apple": ("red", "green"),
    "book": ("red", "green", "blue"),
    "bird": ("blue",),
    "cat": ("yellow",),
    "horse": ("brown",),
    "sheep": ("white",),
    "elephant": ("gray",),
    "backpack": ("red",),
    "umbrella": ("purple",),
    "suitcase": ("blue",),
    "bottle": ("green",),
    "spoon": ("gray",),
    "bowl": ("blue",),
    "banana": ("yellow",),
    "carrot": ("orange",),
    "chair": ("brown",),
    "couch": ("blue",),
    "potted plant": ("green",),
    "toilet": ("white",),
    "clock": ("red",),
    "teddy bear": ("brown",),
    "toothbrush": ("orange",),
}
"""Categories whose pictograms have a clear colour. Only cars, apples and books occur in several."""
COUNT_TEMPLATES = (
    "How many {} are there in the image?",
    "How many {} are there in the image?",
    "How many {} are in the image?",
    "How many {} can you see in the image?",
)
POSITION_TEMPLATES = ("Where is the {} in the image?", "Where is the {} in the image?", "Where in the image is the {}?")
COLOUR_TEMPLATES = ("What color is the {}?", "What color is the {} in the image?", "What is the color of the {}?")


@dataclass(frozen=True)
class ObjectAttributes:
    """Number of objects, index into `CELL_PHRASES` and index into `COLOURS`; -1 where the value is ambiguous."""

    count: int
    cell: int = -1
    colour: int = -1


UNKNOWN_ATTRIBUTES = ObjectAttributes(-1)
ABSENT_ATTRIBUTES = ObjectAttributes(0)
ATTRIBUTE_SIZES = (MAX_COUNT + 1, len(CELL_PHRASES), len(COLOURS))
"""Number of values of each attribute."""


def compute_category_attributes(scene: RenderedScene) -> dict[str, ObjectAttributes]:
    """Compute the attributes of every category that a scene shows."""
    attributes_per_object = compute_object_attributes(scene)
    attributes: dict[str, ObjectAttributes] = {}
    for obj, obj_attributes in zip(scene.objects, attributes_per_object, strict=True):
        previous = attributes.get(obj.name)
        is_single = obj_attributes.count == 1
        has_same_colour = previous is None or previous.colour == obj_attributes.colour
        attributes[obj.name] = ObjectAttributes(
            obj_attributes.count,
            obj_attributes.cell if is_single else -1,
            obj_attributes.colour if has_same_colour else -1,
        )
    return attributes


def compute_object_attributes(scene: RenderedScene) -> list[ObjectAttributes]:
    """Compute the attributes of each object: the number of its category, its own grid cell and its own colour."""
    counts = Counter(obj.name for obj in scene.objects)
    return [
        ObjectAttributes(min(MAX_COUNT, counts[obj.name]), find_cell(obj, len(scene.pixels)), find_colour(obj, scene))
        for obj in scene.objects
    ]


def find_cell(obj: SceneObject, size: int) -> int:
    """Return the ninth of the image that holds the center of an object, or -1 near a border between ninths."""
    left, top, right, bottom = obj.box
    center = np.array([top + bottom, left + right]) / (2 * size)
    if np.abs(center[:, None] - [1 / 3, 2 / 3]).min() < CELL_MARGIN:
        return -1
    row, column = (center * 3).astype(int).clip(0, 2)
    return int(row * 3 + column)


def find_colour(obj: SceneObject, scene: RenderedScene) -> int:
    """Return the candidate colour of the category that is nearest to the mean hue of the visible pixels."""
    candidates = COLOURS_BY_CATEGORY.get(obj.name, ())
    if len(candidates) < 2:
        return COLOURS.index(candidates[0]) if candidates else -1
    red, green, blue = (scene.pixels[scene.instance_map == obj.index].astype(float) / 255).T
    angle = np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    mean = np.angle((chroma**2 * np.exp(1j * angle)).sum())
    nearest = min(candidates, key=lambda name: -np.cos(mean - np.deg2rad(HUES[name])))
    return COLOURS.index(nearest)


def make_counting_question(name: str, count: int, template: str = COUNT_TEMPLATES[0], is_short: bool = True) -> QAPair:
    plural = BY_NAME[name].plural_name
    if is_short:
        number_word = "zero" if count == 0 else NUMBER_WORDS[count]
        return QAPair(
            template.format(plural) + SHORT_ANSWER_SUFFIX, number_word.capitalize(), "detail", plural, count > 0
        )
    answer = (
        f"There {'is' if count == 1 else 'are'} {NUMBER_WORDS[count]} {name if count == 1 else plural} in the image."
    )
    return QAPair(template.format(plural), answer, "detail", plural, count > 0)


def make_position_question(
    name: str, cell: int, template: str = POSITION_TEMPLATES[0], is_short: bool = True
) -> QAPair:
    answer = CELL_PHRASES[cell].capitalize() if is_short else f"The {name} is {CELL_PHRASES[cell]}."
    return QAPair(template.format(name) + SHORT_ANSWER_SUFFIX * is_short, answer, "detail", name, True)


def make_colour_question(name: str, colour: int, template: str = COLOUR_TEMPLATES[0], is_short: bool = True) -> QAPair:
    answer = COLOURS[colour].capitalize() if is_short else f"The {name} is {COLOURS[colour]}."
    return QAPair(template.format(name) + SHORT_ANSWER_SUFFIX * is_short, answer, "detail", name, True)


def sample_attribute_questions(rng: np.random.Generator, scene: RenderedScene, limit: int) -> list[QAPair]:
    """Sample questions about number, position and colour, mostly about categories with several objects.

    Two of three categories occur once in a scene. Questions with that frequency would make "one" so good an answer that
    a model learns no other.

    Args:
        rng: Source of all random choices.
        scene: The scene.
        limit: Maximum number of questions.

    Returns:
        Questions and answers, in random order.
    """
    attributes = compute_category_attributes(scene)
    pairs: list[QAPair] = []
    for name, obj_attributes in attributes.items():
        if rng.random() < (0.9 if obj_attributes.count > 1 else 0.4):
            pairs.append(
                make_counting_question(
                    name, obj_attributes.count, _choose(rng, COUNT_TEMPLATES), bool(rng.random() < 0.6)
                )
            )
        if obj_attributes.cell >= 0 and rng.random() < 0.8:
            pairs.append(
                make_position_question(
                    name, obj_attributes.cell, _choose(rng, POSITION_TEMPLATES), bool(rng.random() < 0.4)
                )
            )
        if obj_attributes.colour >= 0 and rng.random() < (0.7 if len(COLOURS_BY_CATEGORY[name]) > 1 else 0.15):
            pairs.append(
                make_colour_question(
                    name, obj_attributes.colour, _choose(rng, COLOUR_TEMPLATES), bool(rng.random() < 0.6)
                )
            )
    if rng.random() < 0.3:
        absent = sample_absent_category(rng, scene.place, set(attributes), BALANCED_QUESTIONS)
        pairs.append(make_counting_question(absent, 0, _choose(rng, COUNT_TEMPLATES), bool(rng.random() < 0.6)))
    return [pairs[number] for number in rng.permutation(len(pairs))[:limit]]


def _choose(rng: np.random.Generator, forms: tuple[str, ...]) -> str:
    return forms[rng.integers(len(forms))]
