"""Tests that run a few steps of every stage in a tiny configuration."""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.data.categories import NAMES
from embedded.data.renderer import FAR_VIEW
from embedded.data.scene_dataset import make_dataset
from embedded.data.scene_sampler import TRAINING_PRIOR
from embedded.data.text_templates import CAPTION_PROMPTS
from embedded.train import TINY_CONFIG, TrainingPipeline, build_pipeline, run_sharded
from embedded.training.analytic_init import collect_word_states, write_object_readout
from embedded.training.batch import center_targets, mask_objects, normalize_pixels, patch_targets, sample_batch
from embedded.training.joint_stage import assemble_llava, build_joint_model, split_llava
from embedded.training.language_stage import init_language, simulate_image_tokens
from embedded.training.matcher_model import make_texts
from embedded.training.matcher_stage import replace_with_empty_scenes
from embedded.training.model_config import WIDTH, build_class_vectors
from embedded.training.object_stage import ObjectHeads
from embedded.training.packing import IGNORE_INDEX, Packer, TextMix
from embedded.training.position_init import compute_position_waves, ridge_regression, write_positions
from embedded.training.trainer import SHARDS, Trainer
from embedded.training.vision_stage import LANGUAGE_SCALE, VisionModel, rescale_tokens

EMBEDDED = Path(__file__).parents[2] / "embedded"
needs_font = pytest.mark.usefixtures("font")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> TrainingPipeline:
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = TrainingPipeline(folder / "work", folder / "out", TINY_CONFIG)
    pipeline.draw_datasets()
    return pipeline


def test_tiny_pipeline_writes_outside_the_folders_of_the_full_one() -> None:
    tiny, full = (build_pipeline(Namespace(tiny=tiny, work=None, out=None, finished=None)) for tiny in (True, False))
    assert tiny.config == TINY_CONFIG
    assert full.out_dir == EMBEDDED
    for name in ("datasets", "tokenizer", "joint.pt"):
        assert tiny.work_dir / name != full.work_dir / name
    for name in ("model", "matcher", "scenes", "samples"):
        assert tiny.out_dir / name != full.out_dir / name


def test_make_dataset_rejects_a_dataset_of_another_length(tmp_path: Path) -> None:
    (tmp_path / "objects.json").write_text("[]")
    for name in ("pixels.npy", "instance_maps.npy"):
        np.save(tmp_path / name, np.zeros(0))
    with pytest.raises(ValueError, match="holds 0 scenes, not 3"):
        make_dataset(tmp_path, 3, 0, TRAINING_PRIOR, FAR_VIEW, 1)


@needs_font
def test_every_stage_runs_and_exports(pipeline: TrainingPipeline) -> None:
    pipeline.run_vision()
    pipeline.run_language()
    pipeline.run_joint()
    pipeline.run_finish()
    pipeline.run_details()
    pipeline.run_matcher()
    pipeline.export()
    for name in ("model/model.safetensors", "matcher/model.safetensors", "scenes/instances.json", "samples"):
        assert (pipeline.out_dir / name).exists()
    figures = pipeline.evaluate()
    assert set(figures) == {"robustness", "tower", "pope", "chair", "details", "matcher"}


@needs_font
def test_packed_pairs_do_not_attend_to_each_other(pipeline: TrainingPipeline) -> None:
    packer, dataset = Packer(pipeline.build_tokenizer(), TextMix(conversation_rate=0.0)), pipeline.open_dataset("near")
    rng = np.random.default_rng(0)
    row = packer.pack(rng, dataset.get_scene(0), with_image=True)
    batch = packer.batch(np.random.default_rng(0), [dataset.get_scene(0)], [True])
    segments = torch.tensor(row.segments)
    visible = batch.mask[0, 0, : len(segments), : len(segments)] == 0
    allowed = (segments[:, None] == segments[None]) | (segments[None] == 0)
    assert torch.equal(visible, allowed & torch.ones_like(allowed).tril())
    starts = [row.segments.index(segment) for segment in sorted(set(row.segments) - {0})]
    assert len({row.positions[start] for start in starts}) == 1
    assert row.labels[: starts[0]] == [IGNORE_INDEX] * starts[0]


@needs_font
def test_synthetic_image_tokens_encode_the_categories_of_patches(pipeline: TrainingPipeline) -> None:
    dataset, (vectors, empty) = pipeline.open_dataset("near"), build_class_vectors()
    scenes = [dataset.get_scene(index) for index in range(8)]
    tokens = simulate_image_tokens(np.random.default_rng(0), scenes)
    present = patch_targets(np.stack([p.instance_map for p in scenes]), [p.objects for p in scenes]) > 0
    coefficients = ((tokens - empty) @ vectors.T / vectors.square().sum(1)).numpy()
    assert coefficients[present].mean() > 0.6 > 0.1 > abs(coefficients[~present].mean())


@needs_font
def test_masked_scenes_keep_the_objects_that_they_show(pipeline: TrainingPipeline) -> None:
    rng, dataset = np.random.default_rng(0), pipeline.open_dataset("far")
    lost = 0
    for index in range(len(dataset)):
        scene = dataset.get_scene(index)
        region, instance_map, objects = mask_objects(rng, scene.instance_map, scene.objects)
        assert 0.02 < region.mean() <= 0.7
        assert objects
        assert not (instance_map[region] >= 0).any()
        assert set(np.unique(instance_map)) - {-1} == {obj.index for obj in objects}
        lost += len(scene.objects) - len(objects)
    assert lost


@needs_font
def test_scenes_without_objects_match_no_request_for_a_description(pipeline: TrainingPipeline) -> None:
    rng, dataset = np.random.default_rng(0), pipeline.open_dataset("near")
    batch = sample_batch(rng, dataset, 60, masked_fraction=0.2)
    replace_with_empty_scenes(rng, batch)
    is_empty = [not scene.objects for scene in batch.scenes]
    assert 0 < sum(is_empty) < 30
    assert [bool(present.any()) for present in batch.present] == [not empty for empty in is_empty]
    for scene, empty in zip(batch.scenes, is_empty, strict=True):
        texts = make_texts(rng, scene, 40)
        assert {text.matches for text in texts if text.text in CAPTION_PROMPTS} <= {not empty}
        assert any(text.matches for text in texts) != empty


def test_rescale_tokens_keeps_the_logits() -> None:
    torch.manual_seed(0)
    vision, pixels = VisionModel().eval(), torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        evidence_before = vision.compute_evidence(vision.compute_image_tokens(pixels))
        rescale_tokens(vision, LANGUAGE_SCALE)
        assert torch.allclose(vision.compute_evidence(vision.compute_image_tokens(pixels)), evidence_before, atol=1e-3)


def test_split_llava_inverts_assemble_llava() -> None:
    folder = EMBEDDED / "model"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    again = assemble_llava(split_llava(model, tokenizer), tokenizer).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


@needs_font
def test_write_positions_makes_positions_readable_from_image_tokens(pipeline: TrainingPipeline) -> None:
    dataset, vision = pipeline.open_dataset("far"), VisionModel(LANGUAGE_SCALE).eval()
    pixels = normalize_pixels(np.array(dataset.pixels[:]))
    evidence_before = vision.compute_evidence(vision.compute_image_tokens(pixels))
    assert write_positions(vision, dataset, len(dataset)) > 0.7
    tokens = vision.compute_image_tokens(pixels).detach()
    target_waves = compute_position_waves().repeat(len(pixels), 1)
    predicted_waves = tokens.flatten(0, 1) @ ridge_regression(tokens.flatten(0, 1), target_waves)
    assert (predicted_waves - target_waves).square().mean() < 0.3 * target_waves.square().mean()
    assert (vision.compute_evidence(tokens) - evidence_before).abs().mean() < evidence_before.abs().mean()


@needs_font
def test_write_object_readout_makes_counts_readable_at_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower is perfect, and the words are in questions about images that the fit has not used."""
    dataset = make_dataset(tmp_path / "dataset", 192, 7, TRAINING_PRIOR, FAR_VIEW, 1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED / "model")
    torch.manual_seed(0)
    joint = build_joint_model(tokenizer).eval()
    vectors, empty = build_class_vectors()
    spanned, _ = torch.linalg.qr(torch.cat([vectors, empty[None]]).T)
    free = torch.randn(WIDTH, len(NAMES))
    center_vectors = torch.linalg.qr(free - spanned @ (spanned.T @ free))[0].T
    scenes = [dataset.get_scene(index) for index in range(len(dataset))]
    present = torch.from_numpy(patch_targets(np.array(dataset.instance_maps), dataset.objects))
    tokens = empty + 0.8 * present @ vectors + torch.from_numpy(center_targets(scenes)) @ center_vectors
    rows = {float(pixels.sum()): row for row, pixels in enumerate(normalize_pixels(np.array(dataset.pixels)))}
    monkeypatch.setattr(
        joint.vision, "compute_image_tokens", lambda pixels: tokens[[rows[float(scene.sum())] for scene in pixels]]
    )
    object_heads = ObjectHeads(joint.vision)
    object_heads.centers.weight.data = center_vectors

    def explained_variance() -> float:
        """Return the variance of the counts that the words explain linearly, on the half that the fit has not used."""
        words = collect_word_states(joint, packer, dataset, len(dataset))
        numbers = words.numbers.gather(1, words.categories[:, None])
        inputs = torch.cat([words.states, torch.ones_like(numbers)], 1)
        half = len(numbers) // 2
        residual = inputs[half:] @ ridge_regression(inputs[:half], numbers[:half]) - numbers[half:]
        return 1 - float(residual.square().mean() / numbers[half:].var())

    packer = Packer(
        tokenizer, TextMix(caption_rate=0, listing_rate=0, detail_rate=0, described_question_rate=0, max_length=176)
    )
    init_language(joint.language, packer)
    with torch.no_grad():
        variance_before = explained_variance()
        write_object_readout(joint, object_heads, packer, dataset)
        assert explained_variance() > 0.75 > 0.6 > variance_before


def train_layers(work_dir: Path, steps: int, shards: int = 1) -> torch.Tensor:
    """Train two layers, a third only on every other shard, and return all weights."""
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)])
    trainer = Trainer("stage", work_dir, module, steps, seed=3, horizon=8, warmup=2, shards=shards)

    def compute_loss(rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        hidden = module[0](torch.from_numpy(rng.normal(size=(5, 4))).float() + torch.randn(5, 4))
        return module[1 + int(rng.random() < 0.5)](hidden).square().mean(), {}

    for _ in trainer:
        trainer.update(compute_loss)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_interrupted_stage_resumes_exactly(tmp_path: Path) -> None:
    whole = train_layers(tmp_path / "whole", 8)
    train_layers(tmp_path / "pieces", 3)
    assert torch.equal(train_layers(tmp_path / "pieces", 8), whole)


def save_layers(folder: Path) -> None:
    rank = dist.get_rank() if dist.is_initialized() else "alone"
    torch.save(train_layers(folder, 8, SHARDS), folder / f"weights-{rank}.pt")


def test_processes_that_share_each_step_get_the_weights_of_one_process(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    save_layers(alone)
    run_sharded(partial(save_layers, together))
    weights = [torch.load(folder, weights_only=True) for folder in sorted(together.glob("weights-[01].pt"))]
    assert len(weights) == SHARDS
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], torch.load(alone / "weights-alone.pt", weights_only=True))
    assert not torch.allclose(weights[0], train_layers(tmp_path / "unsharded", 8))
