"""The ablation of masked images and descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedded import ablation
from embedded.ablation import ARMS, BASE, CONDITIONS, METRICS, compare_arms, main
from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import make_dataset
from embedded.data.scene_sampler import TRAINING_PRIOR
from embedded.train import TrainingConfig
from embedded.training.augmentation import FULL_AUGMENTATION
from embedded.training.batch import sample_batch
from embedded.training.finish_stage import MIX
from embedded.training.model_config import PIXEL_MEAN, PIXEL_STD


def test_augmentation_changes_the_mix_only_where_it_is_off() -> None:
    assert TrainingConfig().augmentation == FULL_AUGMENTATION
    assert FULL_AUGMENTATION.adapt_mix(MIX) is MIX
    without = BASE.adapt_mix(MIX)
    assert (without.described_question_rate, without.described_caption_rate) == (0, 0)
    assert without.invention_rate == MIX.invention_rate


@pytest.mark.usefixtures("font")
def test_masked_fraction_is_that_of_the_batch(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, 20, 5, TRAINING_PRIOR, FAR_VIEW, 1)
    black = -PIXEL_MEAN / PIXEL_STD

    def count_masked(fraction: float) -> int:
        pixels = sample_batch(np.random.default_rng(0), dataset, 60, masked_fraction=fraction).pixels
        return int(((pixels - black).abs().amax(1).flatten(1) < 1e-6).any(1).sum())

    assert count_masked(0.0) == 0
    assert 0 < count_masked(0.2) < 30
    assert count_masked(1.0) > 50


def test_arms_are_compared_by_scene() -> None:
    wrong = {metric: np.array([[1, 2, 0, 1], [4, 4, 4, 4]]) for metric in METRICS}
    better = {metric: np.stack([counts[0] + 1, counts[1]]) for metric, counts in wrong.items()}
    figures = compare_arms({"both": {"plain": wrong}, "without-masks": {"plain": better}})
    assert figures["both/plain/accuracy"] == {"value": 25.0, "interval": [6.2, 43.8]}
    assert figures["without-masks/plain/recall"] == {
        "value": 50.0,
        "interval": [31.2, 68.8],
        "minus_both": {"value": 25.0, "interval": [25.0, 25.0]},
    }


@pytest.mark.usefixtures("font")
def test_every_arm_continues_from_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {condition: {metric: np.array([[1, 1], [2, 3]]) for metric in METRICS} for condition in CONDITIONS}
    monkeypatch.setattr(ablation, "measure_conditions", lambda generator, dataset: counts)
    monkeypatch.setattr(ablation, "run_parallel", lambda *stages: [stage() for stage in stages])
    monkeypatch.setattr(ablation, "run_sharded", lambda stage: stage())
    main(["--work", str(tmp_path), "--seed", "5", "--scenes", "2", "--scale", "0"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures) == len(ARMS) * len(CONDITIONS) * len(METRICS)
    started, finished = (
        [
            torch.load(tmp_path / folder / f"{stage}.pt")["module"][f"{prefix}language.model.model.embed_tokens.weight"]
            for folder in folders
        ]
        for stage, prefix, folders in (("joint", "", ("base", *ARMS)), ("finish", "joint.", ARMS))
    )
    assert all(torch.equal(each, started[0]) for each in started)
    assert not any(torch.equal(each, finished[0]) for each in (*finished[1:], started[0]))
