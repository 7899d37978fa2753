"""POPE, CHAIR and questions about details, of a model on an album: a check for training only.

All intervals are bootstrapped over pictures.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.album import Album
from embedded.annotations import POPE_KINDS, file_name, pope_questions
from embedded.batch import normalised
from embedded.categories import CATEGORIES
from embedded.details import COLOURS_OF, colouring, counting, facts_of, locating
from embedded.language import CAPTION_PROMPTS, Exchange
from embedded.model import IMAGE_TOKENS

ONE_WORD = " Please answer this question with one word."
WORDS = {word: category.name for category in CATEGORIES for word in (category.name, category.plural_name)}
MENTION = re.compile(r"\b(" + "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True)) + r")\b")
RESAMPLES = 1000

Figures = dict[str, Any]


class Asker:
    """Asks a model in batches. Prompts are padded on the left; greedy decoding throughout."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def prompts(self, questions: list[str]) -> dict[str, torch.Tensor]:
        texts = [f"USER: {'<image>' * IMAGE_TOKENS}\n{question} ASSISTANT:" for question in questions]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        device = self.model.device
        return {"input_ids": encoded["input_ids"].to(device), "attention_mask": encoded["attention_mask"].to(device)}

    @torch.no_grad()
    def say(self, pixels: NDArray[np.uint8], questions: list[str], longest: int) -> list[str]:
        """`pixels` [questions, 112, 112, 3]."""
        inputs = self.prompts(questions)
        images = normalised(pixels).to(self.model.device)
        output = self.model.generate(**inputs, pixel_values=images, max_new_tokens=longest, do_sample=False)
        answers: list[str] = self.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [answer.strip() for answer in answers]


def mentions(text: str) -> list[str]:
    """The categories that a text names, in order, repetitions included."""
    return [WORDS[word] for word in MENTION.findall(text.lower())]


def interval(pictures: int, statistic: Callable[[NDArray[np.int64]], float]) -> list[float]:
    """95 % bootstrap interval, in percent. `statistic` takes indices of pictures."""
    random = np.random.default_rng(0)
    values = [statistic(random.integers(pictures, size=pictures)) for _ in range(RESAMPLES)]
    return [round(100 * float(value), 1) for value in np.percentile(values, [2.5, 97.5])]


def pope(asker: Asker, album: Album, pictures: int | None = None, batch: int = 60) -> Figures:
    """Accuracy, F1 and share of yes for the three kinds of negatives."""
    asked = pope_questions(album)
    index_of = {file_name(index + 1): index for index in range(len(album))}
    unique = sorted({(index_of[q["image"]], q["text"]) for questions in asked.values() for q in questions})
    chosen = set(sorted({index for index, _ in unique})[:pictures])
    unique = [(index, text) for index, text in unique if index in chosen]
    answers: dict[tuple[int, str], str] = {}
    for start in tqdm(range(0, len(unique), batch), desc="POPE", leave=False):
        some = unique[start : start + batch]
        pixels = np.stack([album.pixels[index] for index, _ in some])
        answers |= zip(some, asker.say(pixels, [text + ONE_WORD for _, text in some], longest=4), strict=True)
    figures: Figures = {"unparsed": sum(not re.match(r"(yes|no)\b", answer.lower()) for answer in answers.values())}
    for kind in POPE_KINDS:
        rows = [
            (index_of[q["image"]], q["text"], q["label"] == "yes")
            for q in asked[kind]
            if index_of[q["image"]] in chosen
        ]
        truth = np.array([label for *_, label in rows]).reshape(len(chosen), -1)
        said = np.array([answers[index, text].lower().startswith("yes") for index, text, _ in rows]).reshape(
            truth.shape
        )
        hits = (said & truth).sum()
        figures[kind] = {
            "accuracy": percent((said == truth).mean()),
            "interval": interval(len(chosen), partial(_mean_of, said == truth)),
            "f1": percent(2 * hits / (said.sum() + truth.sum())),
            "yes": percent(said.mean()),
            "questions": truth.size,
        }
    return figures


def captions(asker: Asker, album: Album, count: int, prompt: str = CAPTION_PROMPTS[0], batch: int = 50) -> list[str]:
    said: list[str] = []
    for start in tqdm(range(0, count, batch), desc="captions", leave=False):
        pixels = np.array(album.pixels[start : min(count, start + batch)])
        said += asker.say(pixels, [prompt] * len(pixels), longest=128)
    return said


def chair(said: list[str], album: Album) -> Figures:
    """CHAIR, recall, and how the share of hallucinations grows with the position of a mention."""
    truths = [{thing.name for thing in things} for things in album.things[: len(said)]]
    found = [mentions(text) for text in said]
    false = [[name not in truth for name in names] for names, truth in zip(found, truths, strict=True)]
    wrong = np.array([sum(flags) for flags in false])
    total = np.array([len(flags) for flags in false])
    covered = np.array([len(set(names) & truth) for names, truth in zip(found, truths, strict=True)])
    present = np.array([len(truth) for truth in truths])
    count = len(said)
    return {
        "captions": count,
        "chair_s": percent((wrong > 0).mean()),
        "chair_s_interval": interval(count, lambda rows: float((wrong[rows] > 0).mean())),
        "chair_i": percent(wrong.sum() / total.sum()),
        "chair_i_interval": interval(count, lambda rows: float(wrong[rows].sum() / total[rows].sum())),
        "recall": percent(covered.sum() / present.sum()),
        "recall_interval": interval(count, lambda rows: float(covered[rows].sum() / present[rows].sum())),
        "words": round(float(np.mean([len(text.split()) for text in said])), 1),
        "mentions": round(float(total.mean()), 2),
        "repeating": percent(np.mean([len(set(names)) < len(names) for names in found])),
        "distinct": percent(len(set(said)) / count),
        "by_position": {
            f"{first + 1}-{last}": percent(np.mean(flags))
            if (flags := [f for row in false for f in row[first:last]])
            else None
            for first, last in ((0, 2), (2, 4), (4, 6), (6, 20))
        },
    }


def detail_questions(album: Album, count: int) -> dict[str, list[tuple[int, Exchange]]]:
    """With the number of the picture, all that can be asked without ambiguity.

    "several" is the part of the counting in which as many questions have another answer than one as have that;
    "choice" the part of the colours that only the picture tells, because the pictogram comes in several.
    """
    asked: dict[str, list[tuple[int, Exchange]]] = {
        "counting": [],
        "several": [],
        "position": [],
        "colour": [],
        "choice": [],
    }
    once: list[tuple[int, Exchange]] = []
    for index in range(count):
        for name, facts in facts_of(album.picture(index)).items():
            question = counting(name, facts.count)
            asked["counting"].append((index, question))
            (asked["several"] if facts.count > 1 else once).append((index, question))
            if facts.cell >= 0:
                asked["position"].append((index, locating(name, facts.cell)))
            if facts.colour >= 0:
                asked["colour"].append((index, colouring(name, facts.colour)))
                if len(COLOURS_OF[name]) > 1:
                    asked["choice"].append((index, colouring(name, facts.colour)))
    order = np.random.default_rng(8).permutation(len(once))[: len(asked["several"])]
    asked["several"] += [once[number] for number in order]
    return asked


def details(asker: Asker, album: Album, count: int, batch: int = 60) -> Figures:
    """Accuracy on questions about number, position and colour, beside what the best constant answer would get."""
    asked = detail_questions(album, count)
    unique = sorted({(index, exchange.question) for listed in asked.values() for index, exchange in listed})
    said: dict[tuple[int, str], str] = {}
    for start in tqdm(range(0, len(unique), batch), desc="details", leave=False):
        some = unique[start : start + batch]
        pixels = np.stack([album.pixels[index] for index, _ in some])
        said |= zip(some, asker.say(pixels, [text for _, text in some], longest=8), strict=True)
    figures: Figures = {}
    for kind, listed in asked.items():
        right, total = np.zeros(count, int), np.zeros(count, int)
        for index, exchange in listed:
            right[index] += said[index, exchange.question].lower().rstrip(".") == exchange.answer.lower()
            total[index] += 1
        answers = Counter(exchange.answer for _, exchange in listed)
        figures[kind] = {
            "questions": len(listed),
            "accuracy": percent(right.sum() / total.sum()),
            "interval": interval(count, partial(_share_of, right, total)),
            "constant": percent(max(answers.values()) / len(listed)),
        }
    return figures


def _share_of(some: NDArray[np.int64], total: NDArray[np.int64], rows: NDArray[np.int64]) -> float:
    return float(some[rows].sum() / max(1, total[rows].sum()))


def _mean_of(values: NDArray[np.bool_], rows: NDArray[np.int64]) -> float:
    return float(values[rows].mean())


def percent(value: Any) -> float:
    return round(100 * float(value), 1)
