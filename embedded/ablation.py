"""Ablate masked images and descriptions in the finish stage: `python -m embedded.ablation --work FOLDER --seed SEED`.

Vision, language and joint stages are trained once, without masks and without descriptions. The finish stage then runs
three times from there: with both, without masks, and without descriptions. All stages have fewer scenes and steps than
those of the shipped weights. The models are compared on fresh scenes, paired by scene. Each is trained once, so
intervals contain the variation between scenes and not that between trainings.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import SceneDataset, make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR
from embedded.evaluation.benchmarks import (
    AnswerGenerator,
    answer_pope,
    bootstrap_interval,
    count_mentions,
    generate_captions,
    to_percent,
)
from embedded.evaluation.robustness import DESCRIBED, mask_irrelevant_pixels, write_long_description
from embedded.train import TrainingConfig, TrainingPipeline, run_parallel, run_sharded
from embedded.training.augmentation import FULL_AUGMENTATION, Augmentation
from embedded.training.joint_stage import assemble_llava
from embedded.training.trainer import select_device

BASE = Augmentation(masked_fraction=0.0, has_descriptions=False)
ARMS = {
    "both": FULL_AUGMENTATION,
    "without-masks": Augmentation(masked_fraction=0.0),
    "without-descriptions": Augmentation(has_descriptions=False),
}
CONDITIONS = ("plain", "masked", "described", "misdescribed")
METRICS = ("accuracy", "chair_i", "recall")

Counts = dict[str, NDArray[np.int64]]
"""Numerator and denominator of each metric, of each scene, shape [2, scenes]."""


def build_config(augmentation: Augmentation, scale: float) -> TrainingConfig:
    """Return scenes and steps of the ablation; a smaller scale shortens everything."""

    def shorten(count: int) -> int:
        return max(2, round(scale * count))

    return TrainingConfig(
        near_scenes=max(40, shorten(12_000)),
        far_scenes=max(20, shorten(8_000)),
        tuning_scenes=max(8, shorten(200)),
        report_scenes=8,
        vision_steps=shorten(900),
        language_steps=shorten(350),
        joint_steps=shorten(900),
        finish_steps=shorten(600),
        augmentation=augmentation,
    )


def train_base(folder: Path, scale: float) -> None:
    """Train everything before the finish stage."""
    pipeline = TrainingPipeline(folder, folder / "out", build_config(BASE, scale))
    pipeline.draw_datasets()
    pipeline.build_tokenizer()
    run_parallel(pipeline.run_vision, pipeline.run_language)
    run_sharded(pipeline.run_joint)


def train_arm(base: Path, folder: Path, augmentation: Augmentation, scale: float) -> AnswerGenerator:
    """Run the finish stage of an arm and return its model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("datasets", "tokenizer"):
        if not (folder / name).exists():
            (folder / name).symlink_to((base / name).resolve())
    if not (folder / "joint.pt").exists():
        shutil.copyfile(base / "joint.pt", folder / "joint.pt")
    pipeline = TrainingPipeline(folder, folder / "out", build_config(augmentation, scale))
    run_sharded(pipeline.run_finish)
    tokenizer = pipeline.build_tokenizer()
    return AnswerGenerator(assemble_llava(pipeline.run_finish(), tokenizer).to(select_device()), tokenizer)


def measure_conditions(generator: AnswerGenerator, dataset: SceneDataset) -> dict[str, Counts]:
    """Answer POPE and caption all scenes: undisturbed, masked, and behind two kinds of descriptions."""
    count = len(dataset)
    own = generate_captions(generator, dataset, count)
    wrong = [write_long_description(generator, dataset, index) for index in range(count)]
    return {
        "plain": _measure(generator, dataset, None),
        "masked": _measure(generator, mask_irrelevant_pixels(dataset, count), None),
        "described": _measure(generator, dataset, own),
        "misdescribed": _measure(generator, dataset, wrong),
    }


def _measure(generator: AnswerGenerator, dataset: SceneDataset, descriptions: list[str] | None) -> Counts:
    def format_question(index: int, question: str) -> str:
        return DESCRIBED.format(description=descriptions[index], question=question) if descriptions else question

    _, answers = answer_pope(generator, dataset, format_question=format_question)
    correct = np.concatenate([labels == predicted for labels, predicted in answers.values()], axis=1)
    captions = generate_captions(generator, dataset, len(dataset), format_question=format_question)
    mentions = count_mentions(captions, dataset)
    return {
        "accuracy": np.array([correct.sum(1), np.full(len(correct), correct.shape[1])]),
        "chair_i": np.array([mentions.hallucinated, mentions.mentions]),
        "recall": np.array([mentions.found, mentions.objects]),
    }


def compute_ratio(counts: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
    """Return the ratio of the sums over some scenes."""
    return float(counts[0, rows].sum() / counts[1, rows].sum())


def compare_arms(counts_by_arm: dict[str, dict[str, Counts]]) -> dict[str, object]:
    """Return the metrics of each arm, and their differences to the arm with both, with 95 % intervals, in percent."""

    def describe(scenes: int, statistic: Callable[[NDArray[np.int64]], float]) -> dict[str, object]:
        value = to_percent(statistic(np.arange(scenes)))
        return {"value": value, "interval": bootstrap_interval(scenes, statistic)}

    figures: dict[str, object] = {}
    for arm, conditions in counts_by_arm.items():
        for condition, counts_by_metric in conditions.items():
            for metric, counts in counts_by_metric.items():
                scenes, full = counts.shape[1], counts_by_arm["both"][condition][metric]
                row = describe(scenes, lambda rows, counts=counts: compute_ratio(counts, rows))  # type: ignore[misc]
                if arm != "both":
                    row["minus_both"] = describe(
                        scenes,
                        lambda rows, counts=counts, full=full: (  # type: ignore[misc]
                            compute_ratio(counts, rows) - compute_ratio(full, rows)
                        ),
                    )
                figures[f"{arm}/{condition}/{metric}"] = row
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Train and compare all arms, write `figures.json` into the work folder, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of datasets, checkpoints and figures.json")
    parser.add_argument(
        "--seed", type=int, required=True, help="seed of the fresh scenes; 1 to 4 are those of training"
    )
    parser.add_argument("--scenes", type=int, default=200, help="number of fresh scenes")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the scenes and steps of training")
    options = parser.parse_args(arguments)
    train_base(options.work / "base", options.scale)
    fresh = make_dataset(options.work / "fresh", options.scenes, options.seed, SHIFTED_PRIOR, FAR_VIEW, 1)
    counts_by_arm = {}
    for name, augmentation in ARMS.items():
        generator = train_arm(options.work / "base", options.work / name, augmentation, options.scale)
        counts_by_arm[name] = measure_conditions(generator, fresh)
    figures = json.dumps(compare_arms(counts_by_arm), indent=1)
    (options.work / "figures.json").write_text(figures)
    print(figures)


if __name__ == "__main__":
    main()
