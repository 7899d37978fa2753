"""Tests of the disturbed inputs that the embedded model is evaluated on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import SceneDataset, make_dataset
from embedded.data.scene_sampler import SHIFTED_PRIOR
from embedded.data.text_templates import make_caption
from embedded.evaluation.robustness import (
    MAX_DESCRIPTION_TOKENS,
    add_diffusion_noise,
    is_well_formed,
    mask_irrelevant_pixels,
    write_long_description,
)

MODEL = Path(__file__).parents[2] / "embedded" / "model"


@pytest.fixture(scope="module")
def dataset(font: None, tmp_path_factory: pytest.TempPathFactory) -> SceneDataset:
    return make_dataset(tmp_path_factory.mktemp("scenes"), 8, 77, SHIFTED_PRIOR, FAR_VIEW, processes=1)


def test_mask_blackens_a_part_of_what_no_object_covers(dataset: SceneDataset) -> None:
    masked = mask_irrelevant_pixels(dataset, 6)
    assert len(masked) == 6
    for index, objects in enumerate(masked.objects):
        before, after = np.array(dataset.pixels[index]), masked.pixels[index]
        relevant = np.zeros(before.shape[:2], bool)
        for obj in objects:
            left, top, right, bottom = obj.box
            relevant[top:bottom, left:right] = True
        assert (after[relevant] == before[relevant]).all()
        assert 0.25 < (after[~relevant] == 0).all(-1).mean() < 0.55


def test_noise_has_the_share_of_the_diffusion_step(dataset: SceneDataset) -> None:
    before = np.array(dataset.pixels[:6], float)

    def correlation(step: int) -> float:
        noised = add_diffusion_noise(dataset, 6, step).pixels.astype(float)
        return float(np.corrcoef(before.ravel(), noised.ravel())[0, 1])

    assert correlation(0) > 0.99 > 0.8 > correlation(500) > 0.3 > correlation(999)


def test_training_captions_are_well_formed_and_broken_ones_are_not(dataset: SceneDataset) -> None:
    rng = np.random.default_rng(0)
    captions = [make_caption(rng, dataset.get_scene(index % 8), invention_rate=0.5) for index in range(80)]
    assert all(is_well_formed(caption) for caption in captions)
    for broken in ("The image shows a", "There is a cup. There is a cup.", "A cup cup cup."):
        assert not is_well_formed(broken)


def test_long_descriptions_fill_their_tokens(dataset: SceneDataset) -> None:
    generator: Any = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(MODEL))
    for index in range(8):
        text = write_long_description(generator, dataset, index)
        assert 60 < len(generator.tokenizer(text, add_special_tokens=False)["input_ids"]) <= MAX_DESCRIPTION_TOKENS
