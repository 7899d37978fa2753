"""A scene before it is drawn: its place and which objects it holds, sampled with strong co-occurrence."""

from dataclasses import dataclass

import numpy as np

from embedded.categories import HERDS, LINKS, NAMES, PLACES

MOST_CLASSES, MOST_OBJECTS = 7, 9


@dataclass(frozen=True)
class World:
    """How strongly objects keep to their places. Held-out scenes shift away from what training has shown."""

    core: float
    secondary: float
    occasional: float
    foreign: float
    """Probability of an object that does not belong to the place."""
    links: float
    """Factor on the probabilities of categories.LINKS."""


TRAINING = World(core=0.72, secondary=0.33, occasional=0.10, foreign=0.03, links=1.0)
SHIFTED = World(core=0.60, secondary=0.33, occasional=0.14, foreign=0.08, links=0.4)


@dataclass(frozen=True)
class Contents:
    """What a scene holds: the place and one entry per category with its number of objects."""

    place: str
    counts: dict[str, int]


def sample_contents(random: np.random.Generator, world: World) -> Contents:
    place_name = str(random.choice(list(PLACES)))
    place = PLACES[place_name]
    chosen = [name for name in place.core if random.random() < world.core]
    chosen += [name for name in place.secondary if random.random() < world.secondary]
    chosen += [name for name in place.occasional if random.random() < world.occasional]
    for present, implied, probability in LINKS:
        if present in chosen and implied not in chosen and random.random() < probability * world.links:
            chosen.append(implied)
    for _ in range(2):
        foreign = NAMES[random.integers(len(NAMES))]
        if random.random() < world.foreign and foreign not in chosen:
            chosen.append(foreign)
    usual = place.core + place.secondary
    while len(chosen) < 2:
        name = usual[random.integers(len(usual))]
        if name not in chosen:
            chosen.append(name)
    random.shuffle(chosen)
    counts: dict[str, int] = {}
    for name in chosen[:MOST_CLASSES]:
        more = 1 + (random.random() < 0.2) + (random.random() < 0.08) + (name in HERDS and random.random() < 0.25)
        room = MOST_OBJECTS - sum(counts.values()) - (min(len(chosen), MOST_CLASSES) - len(counts) - 1)
        counts[name] = max(1, min(int(more), room))
    return Contents(place_name, counts)


def likely_absent(random: np.random.Generator, place_name: str, present: set[str]) -> str | None:
    """An object that is not there but that the place and the objects that are there suggest."""
    place = PLACES[place_name]
    weights = (
        dict.fromkeys(place.occasional, 0.4) | dict.fromkeys(place.secondary, 1.5) | dict.fromkeys(place.core, 4.0)
    )
    for seen, implied, probability in LINKS:
        if seen in present:
            weights[implied] = weights.get(implied, 0.0) + 4 * probability
    absent = [name for name in weights if name not in present]
    if not absent:
        return None
    chances = np.array([weights[name] for name in absent])
    return absent[random.choice(len(absent), p=chances / chances.sum())]
