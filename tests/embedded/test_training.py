"""A few steps of every stage in a tiny configuration; an interrupted stage goes on exactly where it was."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.album import make_album
from embedded.batch import dense_targets, middle_targets, normalised
from embedded.categories import NAMES
from embedded.joint_stage import assembled, new_joint, separated
from embedded.language_stage import imagined_tokens, prepare
from embedded.model import WIDTH, class_vectors
from embedded.object_stage import Objects
from embedded.packing import IGNORED, Packer, TextMix
from embedded.picture import FAR
from embedded.scene import TRAINING
from embedded.train import TINY, Workshop, workshop_of
from embedded.training import Trainer
from embedded.vision_stage import READING, Vision, rescale
from embedded.wiring import place_waves, read_objects, regression, words_seen, write_places

EMBEDDED = Path(__file__).parents[2] / "embedded"
needs_font = pytest.mark.usefixtures("font")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    made = Workshop(folder / "work", folder / "out", TINY)
    made.draw()
    return made


def test_a_tiny_one_leaves_what_is_made_in_earnest_alone() -> None:
    tiny, whole = (workshop_of(Namespace(tiny=tiny, work=None, out=None, finished=None)) for tiny in (True, False))
    assert tiny.recipe == TINY
    assert whole.out == EMBEDDED
    for made in ("albums", "tokenizer", "joint.pt"):
        assert tiny.work / made != whole.work / made
    for shipped in ("model", "matcher", "scenes", "samples"):
        assert tiny.out / shipped != whole.out / shipped


def test_an_album_of_another_length_is_no_substitute(tmp_path: Path) -> None:
    (tmp_path / "things.json").write_text("[]")
    for name in ("pixels.npy", "owners.npy"):
        np.save(tmp_path / name, np.zeros(0))
    with pytest.raises(ValueError, match="holds 0 pictures, not 3"):
        make_album(tmp_path, 3, 0, TRAINING, FAR, 1)


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


@needs_font
def test_words_read_how_many_objects_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From tokens of a perfect tower, at the words of questions about pictures that were not used."""
    album = make_album(tmp_path / "album", 192, 7, TRAINING, FAR, 1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED / "model")
    torch.manual_seed(0)
    joint = new_joint(tokenizer).eval()
    vectors, empty = class_vectors()
    spanned, _ = torch.linalg.qr(torch.cat([vectors, empty[None]]).T)
    free = torch.randn(WIDTH, len(NAMES))
    middle_vectors = torch.linalg.qr(free - spanned @ (spanned.T @ free))[0].T
    pictures = [album.picture(index) for index in range(len(album))]
    present = torch.from_numpy(dense_targets(np.array(album.owners), album.things))
    tokens = empty + 0.8 * present @ vectors + torch.from_numpy(middle_targets(pictures)) @ middle_vectors
    rows = {float(pixels.sum()): row for row, pixels in enumerate(normalised(np.array(album.pixels)))}
    monkeypatch.setattr(
        joint.vision, "image_tokens", lambda pixels: tokens[[rows[float(picture.sum())] for picture in pixels]]
    )
    objects = Objects(joint.vision)
    objects.middles.weight.data = middle_vectors

    def right() -> float:
        """Share of the variance of the numbers asked for that the words tell linearly, where that was not learned."""
        seen = words_seen(joint, packer, album, len(album))
        numbers = seen.numbers.gather(1, seen.categories[:, None])
        inputs = torch.cat([seen.states, torch.ones_like(numbers)], 1)
        half = len(numbers) // 2
        missed = inputs[half:] @ regression(inputs[:half], numbers[:half]) - numbers[half:]
        return 1 - float(missed.square().mean() / numbers[half:].var())

    packer = Packer(tokenizer, TextMix(caption=0, listing=0, detail=0, described=0, length=176))
    prepare(joint.language, packer)
    with torch.no_grad():
        before = right()
        read_objects(joint, objects, packer, album)
        assert right() > 0.75 > 0.6 > before


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
