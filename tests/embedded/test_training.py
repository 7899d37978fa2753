"""A few steps of every stage in a tiny configuration; an interrupted stage goes on exactly where it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.batch import dense_targets, normalised
from embedded.joint_stage import assembled, separated
from embedded.language_stage import imagined_tokens
from embedded.model import class_vectors
from embedded.packing import IGNORED, Packer, TextMix
from embedded.train import TINY, Workshop
from embedded.training import Trainer
from embedded.vision_stage import READING, Vision, rescale
from embedded.wiring import place_waves, regression, write_places

EMBEDDED = Path(__file__).parents[2] / "embedded"
needs_font = pytest.mark.usefixtures("font")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    made = Workshop(folder / "work", folder / "out", TINY)
    made.draw()
    return made


@needs_font
def test_every_stage_runs_and_ships(workshop: Workshop) -> None:
    workshop.vision()
    workshop.language()
    workshop.joint()
    workshop.finish()
    workshop.details()
    workshop.matcher()
    workshop.ship()
    for name in ("model/model.safetensors", "matcher/model.safetensors", "scenes/instances.json", "samples"):
        assert (workshop.out / name).exists()
    figures = workshop.measure()
    assert set(figures) == {"tower", "pope", "chair", "details", "matcher"}


@needs_font
def test_packed_exchanges_do_not_see_each_other(workshop: Workshop) -> None:
    packer, album = Packer(workshop.tokenizer(), TextMix(conversation=0.0)), workshop.album("near")
    random = np.random.default_rng(0)
    row = packer.pack(random, album.picture(0), with_image=True)
    batch = packer.batch(np.random.default_rng(0), [album.picture(0)], [True])
    segments = torch.tensor(row.segments)
    seen = batch.mask[0, 0, : len(segments), : len(segments)] == 0
    allowed = (segments[:, None] == segments[None]) | (segments[None] == 0)
    assert torch.equal(seen, allowed & torch.ones_like(allowed).tril())
    starts = [row.segments.index(segment) for segment in sorted(set(row.segments) - {0})]
    assert len({row.positions[start] for start in starts}) == 1
    assert row.labels[: starts[0]] == [IGNORED] * starts[0]


@needs_font
def test_imagined_tokens_say_what_the_patches_show(workshop: Workshop) -> None:
    album, (vectors, empty) = workshop.album("near"), class_vectors()
    pictures = [album.picture(index) for index in range(8)]
    tokens = imagined_tokens(np.random.default_rng(0), pictures)
    present = dense_targets(np.stack([p.owners for p in pictures]), [p.things for p in pictures]) > 0
    coefficients = ((tokens - empty) @ vectors.T / vectors.square().sum(1)).numpy()
    assert coefficients[present].mean() > 0.6 > 0.1 > abs(coefficients[~present].mean())


def test_rescaling_leaves_the_evidence_as_it_was() -> None:
    torch.manual_seed(0)
    vision, pixels = Vision().eval(), torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        before = vision.evidence(vision.image_tokens(pixels))
        rescale(vision, READING)
        assert torch.allclose(vision.evidence(vision.image_tokens(pixels)), before, atol=1e-3)


def test_a_finished_model_can_be_taken_apart_to_go_on() -> None:
    folder = EMBEDDED / "model"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    again = assembled(separated(model, tokenizer), tokenizer).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


@needs_font
def test_image_tokens_tell_where_they_lie(workshop: Workshop) -> None:
    album, vision = workshop.album("far"), Vision(READING).eval()
    pixels = normalised(np.array(album.pixels[:]))
    before = vision.evidence(vision.image_tokens(pixels))
    assert write_places(vision, album, len(album)) > 0.7
    tokens = vision.image_tokens(pixels).detach()
    waves = place_waves().repeat(len(pixels), 1)
    told = tokens.flatten(0, 1) @ regression(tokens.flatten(0, 1), waves)
    assert (told - waves).square().mean() < 0.3 * waves.square().mean()
    assert (vision.evidence(tokens) - before).abs().mean() < before.abs().mean()


def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def trained(work: Path, *stops: int) -> torch.Tensor:
        for stop in stops:
            torch.manual_seed(0)
            module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
            trainer = Trainer("stage", work, module, stop, seed=3, horizon=8, warmup=2)
            for step in trainer:
                inputs = torch.from_numpy(trainer.random(step).normal(size=(5, 4))).float()
                trainer.update(module(inputs).square().mean(), {})
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    assert torch.equal(trained(tmp_path / "whole", 8), trained(tmp_path / "pieces", 3, 8))
