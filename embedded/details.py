"""What can be asked about the objects of a category: how many there are, where the only one is, which colour it has."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from embedded.categories import BY_NAME
from embedded.language import NUMBERS, POSITIONS, SHORT, Exchange, absent_name
from embedded.picture import Picture, Thing

MOST_COUNTED = 5
CELLS = tuple(phrase for row in POSITIONS for phrase in row)
MARGIN = 0.04
"""An object whose middle is nearer than this to the border of two ninths, in sides of the picture, lies in neither."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "white", "gray")
HUES = {"red": 0, "orange": 30, "yellow": 50, "green": 95, "blue": 210}
COLOURS_OF = {
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
"""Categories whose pictograms have a clear colour; which one a car, an apple or a book has, only the picture tells."""
COUNT_FORMS = (
    "How many {} are there in the image?",
    "How many {} are there in the image?",
    "How many {} are in the image?",
    "How many {} can you see in the image?",
)
PLACE_FORMS = ("Where is the {} in the image?", "Where is the {} in the image?", "Where in the image is the {}?")
COLOUR_FORMS = ("What color is the {}?", "What color is the {} in the image?", "What is the color of the {}?")


@dataclass(frozen=True)
class Facts:
    """Indices, -1 for what is ambiguous: the number of objects, into CELLS, into COLOURS."""

    count: int
    cell: int = -1
    colour: int = -1


NOTHING_KNOWN = Facts(-1)
ABSENT = Facts(0)
SIZES = (MOST_COUNTED + 1, len(CELLS), len(COLOURS))
"""How many values each fact has."""


def facts_of(picture: Picture) -> dict[str, Facts]:
    """What is known about every category that a picture shows."""
    each = facts_of_things(picture)
    known: dict[str, Facts] = {}
    for thing, facts in zip(picture.things, each, strict=True):
        before = known.get(thing.name)
        alone = facts.count == 1
        same = before is None or before.colour == facts.colour
        known[thing.name] = Facts(facts.count, facts.cell if alone else -1, facts.colour if same else -1)
    return known


def facts_of_things(picture: Picture) -> list[Facts]:
    """Of each object: how many there are of its kind, and its own ninth and colour."""
    counts = Counter(thing.name for thing in picture.things)
    return [
        Facts(min(MOST_COUNTED, counts[thing.name]), cell(thing, len(picture.pixels)), colour(thing, picture))
        for thing in picture.things
    ]


def cell(thing: Thing, size: int) -> int:
    left, top, right, bottom = thing.box
    middle = np.array([top + bottom, left + right]) / (2 * size)
    if np.abs(middle[:, None] - [1 / 3, 2 / 3]).min() < MARGIN:
        return -1
    row, column = (middle * 3).astype(int).clip(0, 2)
    return int(row * 3 + column)


def colour(thing: Thing, picture: Picture) -> int:
    """Of colours that the pictogram comes in, the one next to the mean hue of what can be seen of the object."""
    possible = COLOURS_OF.get(thing.name, ())
    if len(possible) < 2:
        return COLOURS.index(possible[0]) if possible else -1
    red, green, blue = (picture.pixels[picture.owners == thing.index].astype(float) / 255).T
    angle = np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue)
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    mean = np.angle((chroma**2 * np.exp(1j * angle)).sum())
    nearest = min(possible, key=lambda name: -np.cos(mean - np.deg2rad(HUES[name])))
    return COLOURS.index(nearest)


def counting(name: str, count: int, form: str = COUNT_FORMS[0], short: bool = True) -> Exchange:
    plural = BY_NAME[name].plural_name
    if short:
        word = "zero" if count == 0 else NUMBERS[count]
        return Exchange(form.format(plural) + SHORT, word.capitalize(), "detail", plural, count > 0)
    said = f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {name if count == 1 else plural} in the image."
    return Exchange(form.format(plural), said, "detail", plural, count > 0)


def locating(name: str, cell: int, form: str = PLACE_FORMS[0], short: bool = True) -> Exchange:
    answer = CELLS[cell].capitalize() if short else f"The {name} is {CELLS[cell]}."
    return Exchange(form.format(name) + SHORT * short, answer, "detail", name, True)


def colouring(name: str, colour: int, form: str = COLOUR_FORMS[0], short: bool = True) -> Exchange:
    answer = COLOURS[colour].capitalize() if short else f"The {name} is {COLOURS[colour]}."
    return Exchange(form.format(name) + SHORT * short, answer, "detail", name, True)


def questions(random: np.random.Generator, picture: Picture, most: int) -> list[Exchange]:
    """Up to `most` questions in random order: most about what is there more than once, if anything is.

    In the pictures two of three categories occur once. Asked as often as that, "one" is so good an answer that a
    model learns no other.
    """
    known = facts_of(picture)
    asked: list[Exchange] = []
    for name, facts in known.items():
        if random.random() < (0.9 if facts.count > 1 else 0.4):
            asked.append(counting(name, facts.count, _form(random, COUNT_FORMS), bool(random.random() < 0.6)))
        if facts.cell >= 0 and random.random() < 0.8:
            asked.append(locating(name, facts.cell, _form(random, PLACE_FORMS), bool(random.random() < 0.4)))
        if facts.colour >= 0 and random.random() < (0.7 if len(COLOURS_OF[name]) > 1 else 0.15):
            asked.append(colouring(name, facts.colour, _form(random, COLOUR_FORMS), bool(random.random() < 0.6)))
    if random.random() < 0.3:
        absent = absent_name(random, set(known))
        asked.append(counting(absent, 0, _form(random, COUNT_FORMS), bool(random.random() < 0.6)))
    return [asked[number] for number in random.permutation(len(asked))[:most]]


def _form(random: np.random.Generator, forms: tuple[str, ...]) -> str:
    return forms[random.integers(len(forms))]
