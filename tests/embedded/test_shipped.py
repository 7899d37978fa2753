"""What ships loads as any LLaVA and BLIP checkpoint does, is small, sees, and hallucinates no more than it should."""

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

from embedded.categories import CATEGORIES, NAMES
from embedded.details import COLOURS_OF, colouring, counting, facts_of, locating
from embedded.evaluate import mentions
from embedded.language import Exchange
from embedded.picture import Picture, Thing
from embedded.samples import SAMPLES

EMBEDDED = Path(__file__).parents[2] / "embedded"
SCENES = EMBEDDED / "scenes"
ONE_WORD = " Please answer this question with one word."
PICTURES = 24


@cache
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(EMBEDDED / "model", dtype=torch.float32).eval()


@cache
def processor() -> Any:
    loaded = AutoProcessor.from_pretrained(EMBEDDED / "model")
    loaded.tokenizer.padding_side = "left"
    return loaded


def turns(*texts: str, images: int = 1) -> list[dict[str, Any]]:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": texts[0]}]
    said: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    for number, text in enumerate(texts[1:]):
        said.append({"role": ("assistant", "user")[number % 2], "content": text})
    return said


@torch.no_grad()
def say(pictures: list[Image.Image], questions: list[str], longest: int) -> list[str]:
    prompts = [processor().apply_chat_template(turns(text), add_generation_prompt=True) for text in questions]
    inputs = processor()(images=pictures, text=prompts, padding=True, return_tensors="pt")
    output = model().generate(**inputs, max_new_tokens=longest)
    return list(processor().batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def scene(name: str) -> Image.Image:
    return Image.open(SCENES / "images" / name).convert("RGB")


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_is_small() -> None:
    assert (EMBEDDED / "model" / "model.safetensors").stat().st_size <= 16e6
    assert size_of(EMBEDDED / "matcher") <= 10e6
    assert size_of(SCENES) <= 15e6
    assert 3e6 <= sum(parameter.numel() for parameter in model().parameters()) <= 8e6


def test_class_words_are_single_tokens_and_text_survives() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "model")
    for category in CATEGORIES:
        assert len(tokenizer.tokenize(" " + category.name)) == len(category.name.split())
    for text in ("Is there a cat in the image?", "Übergröße, 猫 & <b>\n\ttabs", "USER: hi ASSISTANT: Yes"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.unk_token_id not in ids
    assert tokenizer.tokenize("<image>") == ["<image>"]


def test_the_chat_template_writes_the_turns_of_llava() -> None:
    asked = turns("What is this?", "A cat.", "Sure?", images=2)
    text = processor().apply_chat_template(asked, add_generation_prompt=True)
    assert text == "USER: <image>\n<image>\nWhat is this? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    plain = [{"role": "user", "content": "Hello"}]
    assert processor().apply_chat_template(plain, add_generation_prompt=True) == "USER: Hello ASSISTANT:"


@pytest.mark.parametrize("name", SAMPLES)
def test_it_names_an_object_of_every_sample(name: str) -> None:
    picture = Image.open(EMBEDDED / "samples" / f"{name}.png").convert("RGB")
    (text,) = say([picture], ["Please describe this image in detail."], 96)
    assert set(mentions(text)) & set(SAMPLES[name][0].counts), text


@pytest.mark.parametrize(("kind", "least"), [("random", 0.75), ("adversarial", 0.6)])
def test_it_answers_pope_far_above_chance(kind: str, least: float) -> None:
    """The card's figures are higher: this is the first few pictures, with room for another torch's rounding."""
    lines = (SCENES / "pope" / f"{kind}.jsonl").read_text().splitlines()[: 6 * PICTURES]
    questions = [json.loads(line) for line in lines]
    answers: list[str] = []
    for start in range(0, len(questions), 36):
        some = questions[start : start + 36]
        answers += say([scene(q["image"]) for q in some], [q["text"] + ONE_WORD for q in some], 3)
    assert all(re.match(r"(yes|no)\b", answer.strip().lower()) for answer in answers)
    right = [answer.strip().lower()[0] == q["label"][0] for answer, q in zip(answers, questions, strict=True)]
    assert sum(right) / len(right) >= least


def pictures_with_masks() -> dict[str, Picture]:
    instances = json.loads((SCENES / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    pictures: dict[str, Picture] = {}
    for image in instances["images"]:
        pixels = np.asarray(scene(image["file_name"]))
        things: list[Thing] = []
        owners = np.full(pixels.shape[:2], -1, np.int8)
        for annotation in (a for a in instances["annotations"] if a["image_id"] == image["id"]):
            (left, top, width, height), runs = annotation["bbox"], annotation["segmentation"]["counts"]
            mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(owners.shape, order="F")
            owners[mask] = len(things)
            box = (left, top, left + width, top + height)
            things.append(Thing(names[annotation["category_id"]], len(things), annotation["area"], box))
        pictures[image["file_name"]] = Picture("", pixels, owners, tuple(things))
    return pictures


@cache
def answered() -> dict[str, list[tuple[str, str]]]:
    """What it says and should say: where things are, the colour of what comes in several, and one or two of a kind."""
    asked: dict[str, list[tuple[Picture, Exchange]]] = {"position": [], "colour": [], "number": []}
    balance = 0
    for picture in pictures_with_masks().values():
        for name, facts in facts_of(picture).items():
            if facts.cell >= 0:
                asked["position"].append((picture, locating(name, facts.cell)))
            if facts.colour >= 0 and len(COLOURS_OF[name]) > 1:
                asked["colour"].append((picture, colouring(name, facts.colour)))
            if facts.count == 2 or (facts.count == 1 and balance > 0):
                asked["number"].append((picture, counting(name, facts.count)))
                balance += 1 if facts.count == 2 else -1
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, listed in asked.items():
        some = listed[:200]
        pictures = [Image.fromarray(picture.pixels) for picture, _ in some]
        answers = say(pictures, [exchange.question for _, exchange in some], 8)
        found[kind] = [(said.strip(), exchange.answer) for said, (_, exchange) in zip(answers, some, strict=True)]
    return found


@pytest.mark.parametrize(("kind", "least"), [("position", 0.2), ("colour", 0.8), ("number", 0.6)])
def test_it_tells_details_better_than_any_constant_answer(kind: str, least: float) -> None:
    answers = answered()[kind]
    constant = max(Counter(answer for _, answer in answers).values()) / len(answers)
    assert len(answers) > 60
    assert sum(said == answer for said, answer in answers) / len(answers) > max(least, constant)


def test_its_captions_end_vary_and_mostly_say_what_is_there() -> None:
    instances = json.loads((SCENES / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    images = instances["images"][:PICTURES]
    shown = {image["id"]: set() for image in images}  # type: dict[int, set[str]]
    for annotation in instances["annotations"]:
        if annotation["image_id"] in shown:
            shown[annotation["image_id"]].add(names[annotation["category_id"]])
    prompts = ["Please describe this image in detail."] * len(images)
    texts = say([scene(image["file_name"]) for image in images], prompts, 128)
    said = [mentions(text) for text in texts]
    wrong = sum(name not in truth for names, truth in zip(said, shown.values(), strict=True) for name in names)
    assert wrong / sum(map(len, said)) <= 0.35
    found = sum(len(set(names) & truth) for names, truth in zip(said, shown.values(), strict=True))
    assert found / sum(map(len, shown.values())) >= 0.4
    assert len(set(texts)) > 0.9 * len(texts)
    assert all(text.rstrip().endswith(".") for text in texts)


def test_it_answers_without_an_image() -> None:
    prompt = processor().apply_chat_template([{"role": "user", "content": "Is there a cat in the image?"}])
    inputs = processor()(text=prompt + "ASSISTANT:", return_tensors="pt")
    output = model().generate(**inputs, max_new_tokens=4)
    assert output.shape[1] > inputs["input_ids"].shape[1]


@cache
def matcher() -> tuple[Any, Any]:
    folder = EMBEDDED / "matcher"
    loaded = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded, AutoProcessor.from_pretrained(folder)


def test_the_matcher_tells_what_is_there() -> None:
    blip, blip_processor = matcher()
    lines = (SCENES / "pope" / "random.jsonl").read_text().splitlines()[: 6 * PICTURES]
    questions = [json.loads(line) for line in lines]
    inputs = blip_processor(
        images=[scene(q["image"]) for q in questions],
        text=[q["text"] for q in questions],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        matches = blip(**inputs).itm_score.argmax(-1)
    right = [(int(match) == 1) == (q["label"] == "yes") for match, q in zip(matches, questions, strict=True)]
    assert sum(right) / len(right) >= 0.75


def test_the_matcher_looks_at_the_object_asked_for() -> None:
    from embedded.heat import heat

    blip, blip_processor = matcher()
    instances = json.loads((SCENES / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    chosen = [a for a in instances["annotations"] if a["image_id"] <= PICTURES and names[a["category_id"]] in NAMES]
    pictures = [scene(files[annotation["image_id"]]) for annotation in chosen]
    texts = [f"is there a {names[annotation['category_id']]} in the image?" for annotation in chosen]
    inputs = blip_processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    maps, _ = heat(blip, inputs, inputs["pixel_values"])
    inside, covered = 0.0, 0.0
    for annotation, spots in zip(chosen, maps, strict=True):
        boxes = torch.zeros(112, 112)
        for other in instances["annotations"]:
            if (other["image_id"], other["category_id"]) == (annotation["image_id"], annotation["category_id"]):
                left, top, width, height = other["bbox"]
                boxes[top : top + height, left : left + width] = 1
        share = boxes.view(8, 14, 8, 14).mean((1, 3))
        inside += float((spots * share).sum() / spots.sum().clamp_min(1e-9))
        covered += float(share.mean())
    assert inside > 2 * covered
