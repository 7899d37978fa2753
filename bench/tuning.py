"""Which value of its main parameter suits a strategy on this model: tried on scenes that are not reported.

The scenes are drawn anew from the seed of the tuning album of `embedded/train.py`, with the same world and view as the
held-out ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from embedded.album import make_album
from embedded.annotations import write_scenes
from embedded.picture import FAR
from embedded.scene import SHIFTED
from eval.catalogue import Catalogue, Entry
from eval.results import Results, Row

if TYPE_CHECKING:
    from bench.study import Study

SEED = 2  # of the tuning album; the reported scenes are of seed 3
PICTURES = 40
FACTORS = (0.25, 0.5, 2.0)  # of the paper's value
LEAST_RECALL = 0.02  # a caption that names less is no better caption: so much recall may be lost

# The parameter that sets how strongly a strategy acts. Of one that is not listed it is the first number that it has.
VALUES: dict[str, tuple[str, tuple[float, ...]]] = {
    "vhr": ("alpha", (1.25, 1.5, 3.0)),  # 1 changes nothing
    "vdgd": ("top_p", (0.25, 0.75, 0.9)),
}


def tuned(study: Study, known: Catalogue, names: list[str]) -> dict[str, str]:
    """Strategy to the recipe that did best on the tuning scenes, which may be the strategy as it is."""
    from bench.study import SHORT, Part

    grids = {name: grid(known.entry(name)) for name in names}
    grids = {name: labels for name, labels in grids.items() if labels}
    if not grids:
        return {}
    data = ("--data", str(scenes(study.out, PICTURES)), "--no-controls")
    recipes = ["plain", *grids, *(label for labels in grids.values() for label in labels)]
    pope = rows(study.run(Part("pope-tuning", "pope", ("--limit", "90")), recipes, *data))
    chair = rows(study.run(Part("chair-tuning", "chair", SHORT), recipes, *data))
    best: dict[str, str] = {}
    for name, labels in grids.items():
        tried = [label for label in (name, *labels) if label in pope and label in chair]
        if tried:
            best[name] = max(tried, key=lambda label: worth(pope[label], chair[label], chair["plain"]))
    return best


def worth(pope: Row, chair: Row, plain: Row) -> float:
    """Accuracy less CHAIR_i, both as shares; nothing for what buys its CHAIR with recall."""
    accuracy, invented = pope.metrics["accuracy"].value, chair.metrics["chair_i"].value
    recall, before = chair.metrics["recall"].value, plain.metrics["recall"].value
    if accuracy is None or invented is None or recall is None or before is None or recall < before - LEAST_RECALL:
        return -1.0
    return accuracy - invented


def grid(entry: Entry) -> list[str]:
    if entry.name in VALUES:
        parameter, values = VALUES[entry.name]
        return [f"{entry.name}:{parameter}={value:g}" for value in values]
    for parameter, schema in entry.properties.items():
        default = schema.get("default")
        if schema.get("type") == "number" and default:
            values = tuple(factor * default for factor in FACTORS)
            return [f"{entry.name}:{parameter}={value:g}" for value in values if within(schema, value)]
    return []


def within(schema: dict[str, float], value: float) -> bool:
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    below = schema.get("exclusiveMinimum", value - 1) < value < schema.get("exclusiveMaximum", value + 1)
    return least <= value <= most and below


def scenes(out: Path, pictures: int) -> Path:
    folder = out / f"tuning-scenes-{pictures}"
    if not (folder / "pope").is_dir():
        write_scenes(folder, make_album(out / f"tuning-album-{pictures}", pictures, SEED, SHIFTED, FAR, 1))
    return folder


def rows(folder: Path) -> dict[str, Row]:
    """Of all parts together."""
    results = Results.model_validate_json((folder / "results.json").read_bytes())
    return {row.strategy: row for row in results.parts[-1].rows}
