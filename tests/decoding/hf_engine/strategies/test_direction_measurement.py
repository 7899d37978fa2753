"""Directions from hallucinated to true captions, against the hidden states that transformers returns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from decoding.hf_engine.captions import CaptionImages, InvalidCaptions, read_lines
from decoding.hf_engine.direction_measurement import CaptionPair, compute_directions, measure_directions
from decoding.hf_engine.engine import HFEngine
from decoding.multimodal.vector_files import VectorFiles
from decoding.prompt import Prompt
from decoding.requests import VectorsRequest
from onlyseen import steering_vectors
from tests.decoding.hf_engine.reference import EncodedPrompt, Reference
from tests.decoding.naive_reference import record_layers

QUESTION = "Describe this image in detail."
PAIRS = (
    (1, "There is a cat on the table.", "There is a cat on the table and a dog"),
    (2, "A person and a dog", "A person, a dog and a car."),
    ("COCO_val2014_000000000001.png", "A table", "A table with a cat and a dog on it."),
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    names = ("image_id", "caption", "hallucinated_caption")
    lines = [json.dumps(dict(zip(names, pair, strict=True))) for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path / "pairs.jsonl"


def read_states(reference: Reference, images: Path, image_id: int | str, caption: str) -> Tensor:
    """Return [1 + layers, width] states at the last token. transformers returns the last one after the final norm."""
    prompt = reference.encode(Prompt.from_text(QUESTION, CaptionImages(images).load(image_id)))
    tokens = reference.processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
    ids = torch.cat([prompt.ids, torch.tensor(tokens)])
    with torch.no_grad():
        states = reference.model(input_ids=ids[None], pixel_values=prompt.pixels, output_hidden_states=True)
    found: dict[int, Tensor] = {}
    reference.logits(EncodedPrompt(ids, prompt.pixels), [], {}, steers=[record_layers(found)])
    return torch.stack([*(state[0, -1].double() for state in states.hidden_states[:-1]), found[max(found)]])


def test_directions_equal_those_of_hidden_states(
    engine: HFEngine, reference_of_tiny: Reference, coco_images: Path, pairs: Path
) -> None:
    found = measure_directions(engine.model, read_lines(pairs, CaptionPair), CaptionImages(coco_images), QUESTION)
    differences = torch.stack(
        [
            (
                read_states(reference_of_tiny, coco_images, image_id, caption)
                - read_states(reference_of_tiny, coco_images, image_id, hallucinated)
            ).flatten()
            for image_id, caption, hallucinated in PAIRS
        ]
    )
    mean = differences.mean(0)
    centred = differences - mean
    axis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    scores = centred @ axis
    axis = axis * scores[scores.abs().argmax()].sign()
    expected = (mean + axis).view(-1, found.shape[1])[1:]
    assert float(axis.view(-1, found.shape[1])[0].norm()) > 1e-3  # the input states count for the axis
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_direction_is_the_mean_and_the_first_axis() -> None:
    differences = torch.tensor([[1.0, 0.0, 0.5, -0.5], [2.0, 1.0, 0.0, 0.5], [0.5, -1.0, 1.0, 0.0]]).double()
    expected = torch.tensor([[1.71927, 0.719121], [0.14044, 0.21957]]).double()
    for order in ([0, 1, 2], [2, 0, 1]):
        found = compute_directions(differences[order].view(3, 2, 2))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_command_writes_a_file_of_the_model(
    tiny: Path,
    coco_images: Path,
    pairs: Path,
    engine: HFEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "vti.safetensors"

    def run(out: Path = file, source: Path = pairs) -> str:
        arguments = ["--model", tiny, "--images", coco_images, "--pairs", source, "--out", out, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments), "--prompt", QUESTION])
        steering_vectors.main()
        return capsys.readouterr().out

    assert run() == f"{file}: directions of 3 pairs\n"
    expected = measure_directions(engine.model, read_lines(pairs, CaptionPair), CaptionImages(coco_images), QUESTION)
    files = VectorFiles(tmp_path, *expected.shape, torch.device("cpu"), str(tiny))
    torch.testing.assert_close(files.load(VectorsRequest(file.name, "vectors")), expected)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata().items() >= {"model": str(tiny), "pairs": "3", "prompt": QUESTION}.items()
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(pairs.read_text().splitlines()[:2]))
    for out, source, problem in (
        (tmp_path / "vti.pt", pairs, "--out: the server reads names such as vti.safetensors, and not vti.pt"),
        (tmp_path / "no" / "vti.safetensors", pairs, "--out: there is no folder"),
        (file, short, "directions need at least 3 pairs of captions; there are 2"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(out, source)
        assert stopped.value.code == 2
        assert problem in capsys.readouterr().err


def test_pairs_without_an_axis_are_refused() -> None:
    with pytest.raises(InvalidCaptions, match="the pairs change the hidden states alike"):
        compute_directions(torch.ones(3, 2, 2).double())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": 1, "caption": "A cat."}', ":1: hallucinated_caption: Field required"),
        ('{"image_id": 1, "caption": "A", "hallucinated_caption": ""}', ":1: hallucinated_caption: String should have"),
        ('{"image_id": 1, "caption": "A", "hallucinated_caption": "A"}', ":1: line: Value error, `caption` and `hall"),
    ],
)
def test_wrong_pair_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(InvalidCaptions, match=rf"pairs\.jsonl{message}"):
        read_lines(tmp_path / "pairs.jsonl", CaptionPair)
