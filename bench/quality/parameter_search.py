"""Grid search for the main parameter of each strategy on this model, on scenes that are not reported.

The scenes have the seed of the tuning dataset of `embedded/train.py`, and the prior and view of the held-out ones.
"""

from __future__ import annotations

from pathlib import Path

from bench.quality.study_spec import MAX_TOKENS_FLAGS, Study, StudyPart
from embedded.data.coco_annotations import write_scenes
from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR
from eval.core.results import Results, StrategyResult
from eval.runs.strategy_catalog import CatalogEntry, StrategyCatalog

TUNING_SEED = 2  # the reported scenes have seed 3
IMAGE_COUNT = 40
DEFAULT_FACTORS = (0.25, 0.5, 2.0)  # factors on the paper's value
MAX_RECALL_LOSS = 0.02  # maximum loss, because captions that name less are not better

# The parameter that controls the strength of a strategy. Strategies that are not listed use their first number.
GRIDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vhr": ("alpha", (1.25, 1.5, 3.0)),  # 1 is neutral
    "vdgd": ("top_p", (0.25, 0.75, 0.9)),
}


def search_parameters(study: Study, registry: StrategyCatalog, names: list[str]) -> dict[str, str]:
    """Find the best spec of each strategy on the tuning scenes; it may be the default one.

    Args:
        study: Servers and output folder.
        registry: The registered strategies.
        names: Strategies to tune.

    Returns:
        Best spec by strategy.
    """
    grids = {name: build_grid(registry.find(name)) for name in names}
    grids = {name: labels for name, labels in grids.items() if labels}
    if not grids:
        return {}
    data = ("--data", str(make_tuning_scenes(study.out, IMAGE_COUNT)), "--no-controls")
    specs = ["plain", *grids, *(label for labels in grids.values() for label in labels)]
    pope = read_rows(study.run(StudyPart("pope-tuning", "pope", ("--limit", "90")), specs, *data))
    chair = read_rows(study.run(StudyPart("chair-tuning", "chair", MAX_TOKENS_FLAGS), specs, *data))
    best: dict[str, str] = {}
    for name, labels in grids.items():
        candidates = [label for label in (name, *labels) if label in pope and label in chair]
        if candidates:
            best[name] = max(candidates, key=lambda label: score(pope[label], chair[label], chair["plain"]))
    return best


def score(pope: StrategyResult, chair: StrategyResult, plain: StrategyResult) -> float:
    """Return accuracy minus CHAIR_i, as fractions; -1 if recall drops too far below plain decoding."""
    accuracy, chair_i = pope.metrics["accuracy"].value, chair.metrics["chair_i"].value
    recall, plain_recall = chair.metrics["recall"].value, plain.metrics["recall"].value
    if (
        accuracy is None
        or chair_i is None
        or recall is None
        or plain_recall is None
        or recall < plain_recall - MAX_RECALL_LOSS
    ):
        return -1.0
    return accuracy - chair_i


def build_grid(entry: CatalogEntry) -> list[str]:
    """Return the specs to try for a strategy."""
    if entry.name in GRIDS:
        parameter, values = GRIDS[entry.name]
        return [f"{entry.name}:{parameter}={value:g}" for value in values]
    for parameter, schema in entry.properties.items():
        default = schema.get("default")
        if schema.get("type") == "number" and default:
            values = tuple(factor * default for factor in DEFAULT_FACTORS)
            return [f"{entry.name}:{parameter}={value:g}" for value in values if is_within(schema, value)]
    return []


def is_within(schema: dict[str, float], value: float) -> bool:
    """Check a value against the bounds of a JSON Schema."""
    minimum, maximum = schema.get("minimum", value), schema.get("maximum", value)
    is_exclusive_ok = schema.get("exclusiveMinimum", value - 1) < value < schema.get("exclusiveMaximum", value + 1)
    return minimum <= value <= maximum and is_exclusive_ok


def make_tuning_scenes(out: Path, count: int) -> Path:
    """Draw and write the tuning scenes, unless they exist."""
    folder = out / f"tuning-scenes-{count}"
    if not (folder / "pope").is_dir():
        dataset = make_dataset(out / f"tuning-dataset-{count}", count, TUNING_SEED, SHIFTED_PRIOR, FAR_VIEW, 1)
        write_scenes(folder, dataset)
    return folder


def read_rows(folder: Path) -> dict[str, StrategyResult]:
    """Read the rows of a run, over all splits together."""
    results = Results.model_validate_json((folder / "results.json").read_bytes())
    return {row.strategy: row for row in results.scopes[-1].rows}
