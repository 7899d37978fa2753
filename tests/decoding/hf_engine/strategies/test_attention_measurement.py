"""Attention statistics of a model, against the attention that transformers returns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from decoding.hf_engine.attention_measurement import AttentionMeans, LabelledCaption, read_captions
from decoding.hf_engine.captions import CaptionImages, InvalidCaptions
from decoding.hf_engine.engine import HFEngine
from decoding.pipeline.attention_statistics import read_attention_statistics
from decoding.prompt import Prompt
from onlyseen import attention_statistics
from tests.decoding.hf_engine.reference import Reference

QUESTION = "Please describe this image in detail."
CAPTION = "There is a cat on the table and a dog behind it."
REAL, HALLUCINATED = ("There", "cat"), ("table", "dog")  # the first token has no token of the answer before it


def write_captions(file: Path, ids: list[int | str], caption: str = CAPTION) -> Path:
    lines = []
    for image_id in ids:
        mentions = [
            {"start": caption.index(word), "end": 0, "hallucinated": word in HALLUCINATED}
            for word in REAL + HALLUCINATED
        ]
        lines.append(LabelledCaption.model_validate({"image_id": image_id, "caption": caption, "mentions": mentions}))
    file.write_text("".join(line.model_dump_json() + "\n" for line in lines))
    return file


def test_means_equal_those_of_eager_attention(
    engine: HFEngine, reference_of_tiny: Reference, coco_images: Path, tmp_path: Path
) -> None:
    captions = read_captions(write_captions(tmp_path / "c.jsonl", [1, "COCO_val2014_000000000002.png"]))
    means = AttentionMeans.zeros(engine.model)
    for caption in captions:
        means.add_caption(engine.model, caption, CaptionImages(coco_images), QUESTION)
    assert means.counts == [2, 4]
    tokenizer, config = reference_of_tiny.processor.tokenizer, reference_of_tiny.decoder.config
    expected: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for caption in captions:
        prompt = reference_of_tiny.encode(Prompt.from_text(QUESTION, CaptionImages(coco_images).load(caption.image_id)))
        tokens = tokenizer(CAPTION, add_special_tokens=False)["input_ids"]
        texts = [tokenizer.decode(tokens[: count + 1]) for count in range(len(tokens))]
        own, config._attn_implementation = config._attn_implementation, "eager"
        ids = torch.cat([prompt.ids, torch.tensor(tokens)])[None]
        with torch.no_grad():
            seen = reference_of_tiny.model(input_ids=ids, pixel_values=prompt.pixels, output_attentions=True).attentions
        config._attn_implementation = own
        attention, start = torch.stack(seen)[:, 0], len(prompt.ids)  # [layers, heads, queries, keys]
        for word in (*REAL[1:], *HALLUCINATED):
            token = next(number for number, text in enumerate(texts) if len(text) > CAPTION.index(word))
            row = attention[:, :, start + token - 1]
            expected[word in HALLUCINATED].append(row[..., start : start + token].mean(-1))
    torch.testing.assert_close(means.real, torch.stack(expected[False]).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(means.hallucinated, torch.stack(expected[True]).mean(0), rtol=1e-4, atol=1e-6)


def test_command_writes_the_file(
    tiny: Path, coco_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = write_captions(tmp_path / "c.jsonl", [1, 2] * 10)
    arguments = ["--model", tiny, "--images", coco_images, "--captions", captions, "--out", tmp_path / "s.safetensors"]
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments), "--device", "cpu", "--prompt", QUESTION])
    attention_statistics.main()
    assert capsys.readouterr().out == f"{tmp_path}/s.safetensors: means of 20 real and 40 hallucinated mentions\n"
    assert all(0 < tensor.min() < tensor.max() < 1 for tensor in read(tmp_path / "s.safetensors").values())
    write_captions(captions, [1])
    with pytest.raises(SystemExit) as stopped:
        attention_statistics.main()
    assert stopped.value.code == 2
    assert f"{captions} has 1 real and 2 hallucinated mentions" in capsys.readouterr().err


def read(file: Path) -> dict[str, torch.Tensor]:
    return read_attention_statistics(file, (6, 4))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no captions"),
        ("[]", ":1: line: Input should be an object"),
        ('{"image_id": 1, "caption": "A cat."}', ":1: mentions: Field required"),
        ('{"image_id": 1, "caption": "A", "mentions": [{"start": "x"}]}', r":1: mentions\.0\.start: Input should be"),
    ],
)
def test_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(InvalidCaptions, match=rf"c\.jsonl.*{message}"):
        read_captions(tmp_path / "c.jsonl")


@pytest.mark.parametrize(("image_id", "message"), [(3, "has no image of this id"), (1, r"has COCO\S+, a1\.png of")])
def test_missing_or_ambiguous_image_is_named(image_id: int, message: str, coco_images: Path) -> None:
    (coco_images / "a1.png").write_bytes(b"no image")
    with pytest.raises(InvalidCaptions, match=f"image_id {image_id}: .*{message}"):
        CaptionImages(coco_images).load(image_id)
    with pytest.raises(InvalidCaptions, match=r"image_id 'a1': .* cannot be read"):
        CaptionImages(coco_images).load("a1")


def test_caption_beyond_the_context_is_named(engine: HFEngine, coco_images: Path, tmp_path: Path) -> None:
    (caption,) = read_captions(write_captions(tmp_path / "c.jsonl", [1], CAPTION + " cat" * 600))
    with pytest.raises(InvalidCaptions, match=r"image_id 1: prompt and caption have .* context is 512"):
        AttentionMeans.zeros(engine.model).add_caption(engine.model, caption, CaptionImages(coco_images), QUESTION)
