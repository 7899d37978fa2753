"""Contents of a scene before rendering: a place and its objects, sampled with strong co-occurrence."""

from dataclasses import dataclass

import numpy as np

from embedded.data.categories import COOCCURRENCES, GROUP_CATEGORIES, NAMES, PLACES

MAX_CATEGORIES, MAX_OBJECTS = 7, 9


@dataclass(frozen=True)
class ScenePrior:
    """Probabilities of objects, by their relation to the place; the prior of held-out scenes is shifted.

    Attributes:
        core: Probability of each core object of the place.
        secondary: Probability of each secondary object.
        occasional: Probability of each occasional object.
        out_of_context: Probability of an object that does not belong to the place.
        cooccurrence_scale: Factor on the probabilities of `categories.COOCCURRENCES`.
    """

    core: float
    secondary: float
    occasional: float
    out_of_context: float
    cooccurrence_scale: float


TRAINING_PRIOR = ScenePrior(core=0.72, secondary=0.33, occasional=0.10, out_of_context=0.03, cooccurrence_scale=1.0)
SHIFTED_PRIOR = ScenePrior(core=0.60, secondary=0.33, occasional=0.14, out_of_context=0.08, cooccurrence_scale=0.4)


@dataclass(frozen=True)
class SceneContents:
    """The place of a scene and the number of objects of each category."""

    place: str
    counts: dict[str, int]


def sample_contents(rng: np.random.Generator, prior: ScenePrior, place_name: str = "") -> SceneContents:
    """Sample a place, unless it is given, and two to nine objects of up to seven categories."""
    place_name = place_name or str(rng.choice(list(PLACES)))
    place = PLACES[place_name]
    chosen = [name for name in place.core if rng.random() < prior.core]
    chosen += [name for name in place.secondary if rng.random() < prior.secondary]
    chosen += [name for name in place.occasional if rng.random() < prior.occasional]
    for present, implied, probability in COOCCURRENCES:
        if present in chosen and implied not in chosen and rng.random() < probability * prior.cooccurrence_scale:
            chosen.append(implied)
    for _ in range(2):
        out_of_context = NAMES[rng.integers(len(NAMES))]
        if rng.random() < prior.out_of_context and out_of_context not in chosen:
            chosen.append(out_of_context)
    usual_names = place.core + place.secondary
    while len(chosen) < 2:
        name = usual_names[rng.integers(len(usual_names))]
        if name not in chosen:
            chosen.append(name)
    rng.shuffle(chosen)
    counts: dict[str, int] = {}
    for name in chosen[:MAX_CATEGORIES]:
        wanted = 1 + (rng.random() < 0.2) + (rng.random() < 0.08) + (name in GROUP_CATEGORIES and rng.random() < 0.25)
        available = MAX_OBJECTS - sum(counts.values()) - (min(len(chosen), MAX_CATEGORIES) - len(counts) - 1)
        counts[name] = max(1, min(int(wanted), available))
    return SceneContents(place_name, counts)


def sample_likely_absent(rng: np.random.Generator, place_name: str, present: set[str]) -> str | None:
    """Sample an absent object that the place or the present objects suggest; None if there is none."""
    place = PLACES[place_name]
    weights = (
        dict.fromkeys(place.occasional, 0.4) | dict.fromkeys(place.secondary, 1.5) | dict.fromkeys(place.core, 4.0)
    )
    for given, implied, probability in COOCCURRENCES:
        if given in present:
            weights[implied] = weights.get(implied, 0.0) + 4 * probability
    absent = [name for name in weights if name not in present]
    if not absent:
        return None
    weights_of_absent = np.array([weights[name] for name in absent])
    return absent[rng.choice(len(absent), p=weights_of_absent / weights_of_absent.sum())]
