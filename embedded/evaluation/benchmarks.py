"""POPE, CHAIR and questions about details of a model on a dataset: a check for training only.

All intervals are bootstrapped over images.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from embedded.data.attributes import (
    COLOURS_BY_CATEGORY,
    compute_category_attributes,
    make_colour_question,
    make_counting_question,
    make_position_question,
)
from embedded.data.categories import CATEGORIES
from embedded.data.coco_annotations import POPE_KINDS, build_image_file_name, build_pope_questions
from embedded.data.scene_dataset import SceneDataset
from embedded.data.text_templates import CAPTION_PROMPTS, QAPair
from embedded.training.batch import normalize_pixels
from embedded.training.model_config import IMAGE_TOKENS

ONE_WORD = " Please answer this question with one word."
WORDS = {word: category.name for category in CATEGORIES for word in (category.name, category.plural_name)}
MENTION = re.compile(r"\b(" + "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True)) + r")\b")
RESAMPLES = 1000

Figures = dict[str, Any]
QuestionFormat = Callable[[int, str], str]
"""Completes a question about a scene, which is given by its index."""


class AnswerGenerator:
    """Generates answers in batches by greedy decoding, with prompts padded on the left."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def encode_prompts(self, questions: list[str]) -> dict[str, torch.Tensor]:
        """Encode prompts with one image each."""
        texts = [f"USER: {'<image>' * IMAGE_TOKENS}\n{question} ASSISTANT:" for question in questions]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        device = self.model.device
        return {"input_ids": encoded["input_ids"].to(device), "attention_mask": encoded["attention_mask"].to(device)}

    @torch.no_grad()
    def generate_answers(self, pixels: NDArray[np.uint8], questions: list[str], max_tokens: int) -> list[str]:
        """Answer one question per image.

        Args:
            pixels: Images, [questions, 112, 112, 3].
            questions: The questions.
            max_tokens: Maximum number of tokens of an answer.

        Returns:
            The answers, stripped.
        """
        inputs = self.encode_prompts(questions)
        images = normalize_pixels(pixels).to(self.model.device)
        output = self.model.generate(**inputs, pixel_values=images, max_new_tokens=max_tokens, do_sample=False)
        answers: list[str] = self.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [answer.strip() for answer in answers]


def find_mentions(text: str) -> list[str]:
    """Return the categories that a text names, in order and with repetitions."""
    return [WORDS[word] for word in MENTION.findall(text.lower())]


def bootstrap_interval(scenes: int, statistic: Callable[[NDArray[np.int64]], float]) -> list[float]:
    """Return the 95 % bootstrap interval, in percent, of a statistic of image indices."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(scenes, size=scenes)) for _ in range(RESAMPLES)]
    return [round(100 * float(value), 1) for value in np.percentile(values, [2.5, 97.5])]


def evaluate_pope(
    generator: AnswerGenerator,
    dataset: SceneDataset,
    scenes: int | None = None,
    batch: int = 60,
    format_question: QuestionFormat = lambda index, question: question,
) -> Figures:
    """Measure accuracy, F1 and the share of "yes" for the three kinds of absent objects.

    Args:
        generator: The model.
        dataset: The scenes.
        scenes: Number of scenes with questions, by default all of them.
        batch: Questions at once.
        format_question: Completes the questions.

    Returns:
        The figures of each kind, and the number of answers that are neither "yes" nor "no".
    """
    unparsed, answers_by_kind = answer_pope(generator, dataset, scenes, batch, format_question)
    figures: Figures = {"unparsed": unparsed}
    for kind, (labels, predicted) in answers_by_kind.items():
        hits = (predicted & labels).sum()
        figures[kind] = {
            "accuracy": to_percent((predicted == labels).mean()),
            "interval": bootstrap_interval(len(labels), partial(_compute_mean, predicted == labels)),
            "f1": to_percent(2 * hits / (predicted.sum() + labels.sum())),
            "yes": to_percent(predicted.mean()),
            "questions": labels.size,
        }
    return figures


def answer_pope(
    generator: AnswerGenerator,
    dataset: SceneDataset,
    scenes: int | None = None,
    batch: int = 60,
    format_question: QuestionFormat = lambda index, question: question,
) -> tuple[int, dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]]:
    """Answer the questions of POPE.

    Args:
        generator: The model.
        dataset: The scenes.
        scenes: Number of scenes with questions, by default all of them.
        batch: Questions at once.
        format_question: Completes the questions.

    Returns:
        The number of answers that are neither "yes" nor "no", and labels and answers of each kind, [scenes, questions].
    """
    questions_by_kind = build_pope_questions(dataset)
    index_of = {build_image_file_name(index + 1): index for index in range(len(dataset))}
    queries = sorted(
        {
            (index_of[question["image"]], question["text"])
            for questions in questions_by_kind.values()
            for question in questions
        }
    )
    chosen = set(sorted({index for index, _ in queries})[:scenes])
    queries = [(index, text) for index, text in queries if index in chosen]
    answers: dict[tuple[int, str], str] = {}
    for start in tqdm(range(0, len(queries), batch), desc="POPE", leave=False):
        chunk = queries[start : start + batch]
        pixels = np.stack([dataset.pixels[index] for index, _ in chunk])
        prompts = [format_question(index, text + ONE_WORD) for index, text in chunk]
        answers |= zip(chunk, generator.generate_answers(pixels, prompts, max_tokens=4), strict=True)
    unparsed = sum(not re.match(r"(yes|no)\b", answer.lower()) for answer in answers.values())
    answers_by_kind: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for kind in POPE_KINDS:
        rows = [
            (index_of[question["image"]], question["text"], question["label"] == "yes")
            for question in questions_by_kind[kind]
            if index_of[question["image"]] in chosen
        ]
        labels = np.array([label for *_, label in rows]).reshape(len(chosen), -1)
        predicted = np.array([answers[index, text].lower().startswith("yes") for index, text, _ in rows]).reshape(
            labels.shape
        )
        answers_by_kind[kind] = labels, predicted
    return unparsed, answers_by_kind


def generate_captions(
    generator: AnswerGenerator,
    dataset: SceneDataset,
    count: int,
    prompt: str = CAPTION_PROMPTS[0],
    batch: int = 50,
    format_question: QuestionFormat = lambda index, question: question,
) -> list[str]:
    """Caption the first `count` scenes.

    Args:
        generator: The model.
        dataset: The scenes.
        count: Number of scenes.
        prompt: The request.
        batch: Captions at once.
        format_question: Completes the request.

    Returns:
        The captions.
    """
    answers: list[str] = []
    for start in tqdm(range(0, count, batch), desc="captions", leave=False):
        indices = range(start, min(count, start + batch))
        prompts = [format_question(index, prompt) for index in indices]
        answers += generator.generate_answers(np.array(dataset.pixels[indices]), prompts, max_tokens=128)
    return answers


class MentionCounts(NamedTuple):
    """Objects that captions mention, of each scene, shape [scenes]."""

    hallucinated: NDArray[np.int64]
    mentions: NDArray[np.int64]
    found: NDArray[np.int64]
    objects: NDArray[np.int64]


def count_mentions(answers: list[str], dataset: SceneDataset) -> MentionCounts:
    """Count hallucinated mentions, all mentions, present categories that are mentioned, and present categories."""
    truth_sets = [{obj.name for obj in objects} for objects in dataset.objects[: len(answers)]]
    predicted = [find_mentions(text) for text in answers]
    rows = [
        (sum(name not in truth for name in names), len(names), len(set(names) & truth), len(truth))
        for names, truth in zip(predicted, truth_sets, strict=True)
    ]
    return MentionCounts(*np.array(rows).T)


def evaluate_chair(answers: list[str], dataset: SceneDataset) -> Figures:
    """Measure CHAIR, recall, and the share of hallucinations by the position of a mention."""
    truth_sets = [{obj.name for obj in objects} for objects in dataset.objects[: len(answers)]]
    predicted = [find_mentions(text) for text in answers]
    is_hallucinated = [
        [name not in truth for name in names] for names, truth in zip(predicted, truth_sets, strict=True)
    ]
    hallucinated_counts, mention_counts, found_counts, object_counts = count_mentions(answers, dataset)
    count = len(answers)
    return {
        "captions": count,
        "chair_s": to_percent((hallucinated_counts > 0).mean()),
        "chair_s_interval": bootstrap_interval(count, lambda rows: float((hallucinated_counts[rows] > 0).mean())),
        "chair_i": to_percent(hallucinated_counts.sum() / mention_counts.sum()),
        "chair_i_interval": bootstrap_interval(
            count,
            lambda rows: float(hallucinated_counts[rows].sum() / mention_counts[rows].sum()),
        ),
        "recall": to_percent(found_counts.sum() / object_counts.sum()),
        "recall_interval": bootstrap_interval(
            count, lambda rows: float(found_counts[rows].sum() / object_counts[rows].sum())
        ),
        "words": round(float(np.mean([len(text.split()) for text in answers])), 1),
        "mentions": round(float(mention_counts.mean()), 2),
        "repeating": to_percent(np.mean([len(set(names)) < len(names) for names in predicted])),
        "distinct": to_percent(len(set(answers)) / count),
        "by_position": {
            f"{first + 1}-{last}": to_percent(np.mean(flags))
            if (flags := [f for row in is_hallucinated for f in row[first:last]])
            else None
            for first, last in ((0, 2), (2, 4), (4, 6), (6, 20))
        },
    }


def build_detail_questions(dataset: SceneDataset, count: int) -> dict[str, list[tuple[int, QAPair]]]:
    """Build all questions about details that have one right answer, with the index of their scene.

    "several" is a balanced part of "counting": half of its questions have the answer "one". "choice" is the part of
    "colour" that only the image decides, because the pictogram has several colours.

    Args:
        dataset: The scenes.
        count: Number of scenes.

    Returns:
        Questions of each kind.
    """
    pairs_by_kind: dict[str, list[tuple[int, QAPair]]] = {
        "counting": [],
        "several": [],
        "position": [],
        "colour": [],
        "choice": [],
    }
    single_pairs: list[tuple[int, QAPair]] = []
    for index in range(count):
        for name, attributes in compute_category_attributes(dataset.get_scene(index)).items():
            question = make_counting_question(name, attributes.count)
            pairs_by_kind["counting"].append((index, question))
            (pairs_by_kind["several"] if attributes.count > 1 else single_pairs).append((index, question))
            if attributes.cell >= 0:
                pairs_by_kind["position"].append((index, make_position_question(name, attributes.cell)))
            if attributes.colour >= 0:
                pairs_by_kind["colour"].append((index, make_colour_question(name, attributes.colour)))
                if len(COLOURS_BY_CATEGORY[name]) > 1:
                    pairs_by_kind["choice"].append((index, make_colour_question(name, attributes.colour)))
    order = np.random.default_rng(8).permutation(len(single_pairs))[: len(pairs_by_kind["several"])]
    pairs_by_kind["several"] += [single_pairs[number] for number in order]
    return pairs_by_kind


def evaluate_details(generator: AnswerGenerator, dataset: SceneDataset, count: int, batch: int = 60) -> Figures:
    """Measure the accuracy on number, position and colour, beside that of the best constant answer."""
    pairs_by_kind = build_detail_questions(dataset, count)
    queries = sorted({(index, pair.question) for pairs in pairs_by_kind.values() for index, pair in pairs})
    answers: dict[tuple[int, str], str] = {}
    for start in tqdm(range(0, len(queries), batch), desc="details", leave=False):
        chunk = queries[start : start + batch]
        pixels = np.stack([dataset.pixels[index] for index, _ in chunk])
        answers |= zip(
            chunk, generator.generate_answers(pixels, [text for _, text in chunk], max_tokens=8), strict=True
        )
    figures: Figures = {}
    for kind, pairs in pairs_by_kind.items():
        if not pairs:  # as in a tiny dataset
            continue
        correct, question_counts = np.zeros(count, int), np.zeros(count, int)
        for index, pair in pairs:
            correct[index] += answers[index, pair.question].lower().rstrip(".") == pair.answer.lower()
            question_counts[index] += 1
        answer_counts = Counter(pair.answer for _, pair in pairs)
        figures[kind] = {
            "questions": len(pairs),
            "accuracy": to_percent(correct.sum() / question_counts.sum()),
            "interval": bootstrap_interval(count, partial(_compute_share, correct, question_counts)),
            "constant": to_percent(max(answer_counts.values()) / len(pairs)),
        }
    return figures


def _compute_share(part: NDArray[np.int64], total: NDArray[np.int64], image_indices: NDArray[np.int64]) -> float:
    return float(part[image_indices].sum() / max(1, total[image_indices].sum()))


def _compute_mean(values: NDArray[np.bool_], image_indices: NDArray[np.int64]) -> float:
    return float(values[image_indices].mean())


def to_percent(value: Any) -> float:
    return round(100 * float(value), 1)
