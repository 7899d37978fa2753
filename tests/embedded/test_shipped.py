"""Tests that the shipped model and matcher load as any LLaVA and BLIP checkpoint, are small, and score well enough."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, BlipForImageTextRetrieval

from embedded.data.attributes import (
    COLOURS_BY_CATEGORY,
    compute_category_attributes,
    make_colour_question,
    make_counting_question,
    make_position_question,
)
from embedded.data.categories import CATEGORIES, NAMES
from embedded.data.renderer import RenderedScene, SceneObject
from embedded.data.samples import SAMPLES, list_objects
from embedded.data.text_templates import QAPair
from embedded.evaluation.benchmarks import find_mentions
from embedded.evaluation.grad_cam import compute_grad_cam

EMBEDDED = Path(__file__).parents[2] / "embedded"
SCENES = EMBEDDED / "scenes"
ONE_WORD = " Please answer this question with one word."
IMAGE_COUNT = 24


@cache
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(EMBEDDED / "model", dtype=torch.float32).eval()


@cache
def processor() -> Any:
    loaded = AutoProcessor.from_pretrained(EMBEDDED / "model")
    loaded.tokenizer.padding_side = "left"
    return loaded


def chat_messages(*texts: str, images: int = 1) -> list[dict[str, Any]]:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": texts[0]}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    for number, text in enumerate(texts[1:]):
        messages.append({"role": ("assistant", "user")[number % 2], "content": text})
    return messages


@torch.no_grad()
def generate_answers(images: list[Image.Image], questions: list[str], max_tokens: int) -> list[str]:
    prompts = [processor().apply_chat_template(chat_messages(text), add_generation_prompt=True) for text in questions]
    inputs = processor()(images=images, text=prompts, padding=True, return_tensors="pt")
    output = model().generate(**inputs, max_new_tokens=max_tokens)
    return list(processor().batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def load_image(name: str) -> Image.Image:
    return Image.open(SCENES / "images" / name).convert("RGB")


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_model_matcher_and_scenes_stay_below_their_size_limits() -> None:
    assert (EMBEDDED / "model" / "model.safetensors").stat().st_size <= 16e6
    assert folder_size(EMBEDDED / "matcher") <= 10e6
    assert folder_size(SCENES) <= 15e6
    assert 3e6 <= sum(parameter.numel() for parameter in model().parameters()) <= 8e6


def test_tokenizer_keeps_category_words_whole_and_decodes_losslessly() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "model")
    for category in CATEGORIES:
        assert len(tokenizer.tokenize(" " + category.name)) == len(category.name.split())
    for text in ("Is there a cat in the image?", "Übergröße, 猫 & <b>\n\ttabs", "USER: hi ASSISTANT: Yes"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.unk_token_id not in ids
    assert tokenizer.tokenize("<image>") == ["<image>"]


def test_chat_template_matches_llava() -> None:
    questions_by_kind = chat_messages("What is this?", "A cat.", "Sure?", images=2)
    text = processor().apply_chat_template(questions_by_kind, add_generation_prompt=True)
    assert text == "USER: <image>\n<image>\nWhat is this? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    plain = [{"role": "user", "content": "Hello"}]
    assert processor().apply_chat_template(plain, add_generation_prompt=True) == "USER: Hello ASSISTANT:"


def test_samples_come_with_their_objects() -> None:
    assert json.loads((EMBEDDED / "samples" / "objects.json").read_text()) == list_objects()


@pytest.mark.parametrize("name", SAMPLES)
def test_model_names_an_object_of_every_sample(name: str) -> None:
    image = Image.open(EMBEDDED / "samples" / f"{name}.png").convert("RGB")
    (text,) = generate_answers([image], ["Please describe this image in detail."], 96)
    assert set(find_mentions(text)) & set(SAMPLES[name][0].counts), text


@pytest.mark.parametrize(("kind", "minimum"), [("random", 0.75), ("adversarial", 0.6)])
def test_model_scores_above_chance_on_pope(kind: str, minimum: float) -> None:
    """The thresholds lie below the model card's figures: few images, and rounding differs between torch versions."""
    lines = (SCENES / "pope" / f"{kind}.jsonl").read_text().splitlines()[: 6 * IMAGE_COUNT]
    questions = [json.loads(line) for line in lines]
    answers: list[str] = []
    for start in range(0, len(questions), 36):
        chunk = questions[start : start + 36]
        answers += generate_answers([load_image(q["image"]) for q in chunk], [q["text"] + ONE_WORD for q in chunk], 3)
    assert all(re.match(r"(yes|no)\b", answer.strip().lower()) for answer in answers)
    right = [answer.strip().lower()[0] == q["label"][0] for answer, q in zip(answers, questions, strict=True)]
    assert sum(right) / len(right) >= minimum


def load_scenes_with_masks() -> dict[str, RenderedScene]:
    instances = json.loads((SCENES / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    scenes: dict[str, RenderedScene] = {}
    for image in instances["images"]:
        pixels = np.asarray(load_image(image["file_name"]))
        objects: list[SceneObject] = []
        instance_map = np.full(pixels.shape[:2], -1, np.int8)
        for annotation in (a for a in instances["annotations"] if a["image_id"] == image["id"]):
            (left, top, width, height), runs = annotation["bbox"], annotation["segmentation"]["counts"]
            mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(instance_map.shape, order="F")
            instance_map[mask] = len(objects)
            box = (left, top, left + width, top + height)
            objects.append(SceneObject(names[annotation["category_id"]], len(objects), annotation["area"], box))
        scenes[image["file_name"]] = RenderedScene("", pixels, instance_map, tuple(objects))
    return scenes


@cache
def answer_detail_questions() -> dict[str, list[tuple[str, str]]]:
    """Return (answer, expected answer) for positions, for ambiguous colours, and for balanced counts of one and two."""
    questions_by_kind: dict[str, list[tuple[RenderedScene, QAPair]]] = {"position": [], "colour": [], "number": []}
    balance = 0
    for scene in load_scenes_with_masks().values():
        for name, attributes in compute_category_attributes(scene).items():
            if attributes.cell >= 0:
                questions_by_kind["position"].append((scene, make_position_question(name, attributes.cell)))
            if attributes.colour >= 0 and len(COLOURS_BY_CATEGORY[name]) > 1:
                questions_by_kind["colour"].append((scene, make_colour_question(name, attributes.colour)))
            if attributes.count == 2 or (attributes.count == 1 and balance > 0):
                questions_by_kind["number"].append((scene, make_counting_question(name, attributes.count)))
                balance += 1 if attributes.count == 2 else -1
    answers_by_kind: dict[str, list[tuple[str, str]]] = {}
    for kind, pairs in questions_by_kind.items():
        chunk = pairs[:200]
        images = [Image.fromarray(scene.pixels) for scene, _ in chunk]
        answers = generate_answers(images, [pair.question for _, pair in chunk], 8)
        answers_by_kind[kind] = [
            (answer.strip(), pair.answer) for answer, (_, pair) in zip(answers, chunk, strict=True)
        ]
    return answers_by_kind


@pytest.mark.parametrize(("kind", "minimum"), [("position", 0.2), ("colour", 0.8), ("number", 0.6)])
def test_model_beats_every_constant_answer_on_details(kind: str, minimum: float) -> None:
    answers = answer_detail_questions()[kind]
    constant = max(Counter(answer for _, answer in answers).values()) / len(answers)
    assert len(answers) > 60
    assert sum(answer == expected for answer, expected in answers) / len(answers) > max(minimum, constant)


def test_model_captions_end_and_vary_and_stay_below_a_hallucination_rate() -> None:
    instances = json.loads((SCENES / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    images = instances["images"][:IMAGE_COUNT]
    shown = {image["id"]: set() for image in images}  # type: dict[int, set[str]]
    for annotation in instances["annotations"]:
        if annotation["image_id"] in shown:
            shown[annotation["image_id"]].add(names[annotation["category_id"]])
    prompts = ["Please describe this image in detail."] * len(images)
    texts = generate_answers([load_image(image["file_name"]) for image in images], prompts, 128)
    mentions = [find_mentions(text) for text in texts]
    wrong = sum(name not in truth for names, truth in zip(mentions, shown.values(), strict=True) for name in names)
    assert wrong / sum(map(len, mentions)) <= 0.35
    found = sum(len(set(names) & truth) for names, truth in zip(mentions, shown.values(), strict=True))
    assert found / sum(map(len, shown.values())) >= 0.4
    assert len(set(texts)) > 0.9 * len(texts)
    assert all(text.rstrip().endswith(".") for text in texts)


def test_model_answers_without_an_image() -> None:
    prompt = processor().apply_chat_template([{"role": "user", "content": "Is there a cat in the image?"}])
    inputs = processor()(text=prompt + "ASSISTANT:", return_tensors="pt")
    output = model().generate(**inputs, max_new_tokens=4)
    assert output.shape[1] > inputs["input_ids"].shape[1]


@cache
def matcher() -> tuple[Any, Any]:
    folder = EMBEDDED / "matcher"
    loaded = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded, AutoProcessor.from_pretrained(folder)


def test_matcher_scores_above_chance_on_pope() -> None:
    blip, blip_processor = matcher()
    lines = (SCENES / "pope" / "random.jsonl").read_text().splitlines()[: 6 * IMAGE_COUNT]
    questions = [json.loads(line) for line in lines]
    inputs = blip_processor(
        images=[load_image(q["image"]) for q in questions],
        text=[q["text"] for q in questions],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        matches = blip(**inputs).itm_score.argmax(-1)
    right = [(int(match) == 1) == (q["label"] == "yes") for match, q in zip(matches, questions, strict=True)]
    assert sum(right) / len(right) >= 0.75


def test_matcher_grad_cam_covers_the_named_object() -> None:
    blip, blip_processor = matcher()
    instances = json.loads((SCENES / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    chosen = [a for a in instances["annotations"] if a["image_id"] <= IMAGE_COUNT and names[a["category_id"]] in NAMES]
    images = [load_image(files[annotation["image_id"]]) for annotation in chosen]
    texts = [f"is there a {names[annotation['category_id']]} in the image?" for annotation in chosen]
    inputs = blip_processor(images=images, text=texts, padding=True, return_tensors="pt")
    maps, _ = compute_grad_cam(blip, inputs, inputs["pixel_values"])
    inside, covered = 0.0, 0.0
    for annotation, grad_cam_map in zip(chosen, maps, strict=True):
        boxes = torch.zeros(112, 112)
        for other in instances["annotations"]:
            if (other["image_id"], other["category_id"]) == (annotation["image_id"], annotation["category_id"]):
                left, top, width, height = other["bbox"]
                boxes[top : top + height, left : left + width] = 1
        share = boxes.view(8, 14, 8, 14).mean((1, 3))
        inside += float((grad_cam_map * share).sum() / grad_cam_map.sum().clamp_min(1e-9))
        covered += float(share.mean())
    assert inside > 2 * covered
