"""Packing of many independent question-answer pairs about one scene after one copy of its image tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from embedded.data.attributes import (
    ABSENT_ATTRIBUTES,
    UNKNOWN_ATTRIBUTES,
    ObjectAttributes,
    compute_category_attributes,
    sample_attribute_questions,
)
from embedded.data.categories import BY_NAME, CATEGORIES
from embedded.data.renderer import RenderedScene
from embedded.data.text_templates import (
    BALANCED_QUESTIONS,
    LIST_PROMPTS,
    OMISSION_RATE,
    QAPair,
    QuestionMix,
    add_description,
    add_hidden_categories,
    make_caption_pair,
    make_detail_question,
    make_listing,
    make_presence_question,
)
from embedded.training.model_config import IMAGE_TOKENS

IGNORE_INDEX = -100
CATEGORY_BY_WORD = {word: name for name, category in BY_NAME.items() for word in (name, category.plural_name)}
KIND_IDS = {"caption": 0, "presence": 1, "detail": 2}
OBJECT_WORD_WEIGHT = 2.0
MAX_NAMED = 16


@dataclass(frozen=True)
class TextMix:
    """Probabilities and counts of the question-answer pairs in a pack.

    Attributes:
        caption_rate: Probability of a caption.
        second_caption_rate: Probability of a second caption after the first.
        listing_rate: Probability of a list of objects.
        detail_rate: Probability of a question about details.
        described_question_rate: Probability of a presence question after a description.
        described_caption_rate: Probability of a further caption after a description.
        invention_rate: Probability that a caption names an absent object.
        omission_rate: Probability that a caption leaves out a small object.
        without_image_rate: Probability of a pack without image tokens.
        conversation_rate: Probability that all pairs form one conversation.
        presence_mix: Topics of the presence questions.
        max_attribute_questions: Maximum number of questions about number, position and colour.
        num_presence_questions: Number of presence questions.
        max_length: Maximum number of tokens.
    """

    caption_rate: float = 0.8
    second_caption_rate: float = 0.0
    listing_rate: float = 0.35
    detail_rate: float = 0.5
    described_question_rate: float = 0.08
    described_caption_rate: float = 0.0
    invention_rate: float = 0.25
    omission_rate: float = OMISSION_RATE
    without_image_rate: float = 0.06
    conversation_rate: float = 0.10
    presence_mix: QuestionMix = BALANCED_QUESTIONS
    max_attribute_questions: int = 0
    num_presence_questions: int = 12
    max_length: int = 248


@dataclass
class PackedRow:
    """One packed row. Every list has one entry per token.

    Attributes:
        ids: Token ids.
        labels: Token ids where an answer is learned, else `IGNORE_INDEX`.
        segments: 0 for the shared prefix, which all tokens see; k for tokens that only segment k sees.
        positions: Position ids.
        kinds: Values of `KIND_IDS` where an answer is learned, else -1.
        presence_labels: At the word of the category that a question names, whether it is present; else -1.
        attributes: Attributes of that category, at that word and where the answer about details begins.
        named_before: Words of the categories that the same enumeration has already named.
    """

    ids: list[int]
    labels: list[int]
    segments: list[int]
    positions: list[int]
    kinds: list[int]
    presence_labels: list[int]
    attributes: list[ObjectAttributes]
    named_before: list[list[int]]


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows as tensors, padded to one length.

    Attributes:
        ids: [rows, length].
        labels: [rows, length].
        positions: [rows, length].
        kinds: [rows, length].
        presence_labels: [rows, length].
        attributes: [rows, length, 3], -1 for unknown values.
        named_before: [rows, length, MAX_NAMED], -1 for none.
        mask: [rows, 1, length, length], 0 where a token may attend to another (last axis), else -1e9.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    kinds: torch.Tensor
    presence_labels: torch.Tensor
    attributes: torch.Tensor
    named_before: torch.Tensor
    mask: torch.Tensor


class Packer:
    """Builds packed rows and batches from scenes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, mix: TextMix) -> None:
        self.tokenizer, self.mix = tokenizer, mix
        self.image = int(tokenizer.convert_tokens_to_ids("<image>"))
        self.start, self.end, self.padding = (
            int(tokenizer.bos_token_id),
            int(tokenizer.eos_token_id),
            int(tokenizer.pad_token_id),
        )
        self._cache: dict[str, list[int]] = {}
        self._words_for: dict[int, list[int]] = {}
        for category in CATEGORIES:
            words = [self.encode(" " + word)[0] for word in (category.name, category.plural_name)]
            self._words_for |= dict.fromkeys(words, words)

    def encode(self, text: str) -> list[int]:
        """Encode a text without special tokens; texts are cached."""
        if text not in self._cache:
            if len(self._cache) > 100_000:
                self._cache.clear()
            self._cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def build_pairs(self, rng: np.random.Generator, scene: RenderedScene) -> list[QAPair]:
        """Sample the question-answer pairs of one pack."""
        mix, pairs = self.mix, []
        scene = add_hidden_categories(rng, scene, mix.presence_mix)
        if rng.random() < mix.caption_rate:
            pairs.append(make_caption_pair(rng, scene, mix.invention_rate, mix.omission_rate))
            if rng.random() < mix.second_caption_rate:
                pairs.append(make_caption_pair(rng, scene, mix.invention_rate, mix.omission_rate))
        if rng.random() < mix.listing_rate:
            pairs.append(make_listing(rng, scene))
        if rng.random() < mix.detail_rate:
            pairs.append(make_detail_question(rng, scene))
        if rng.random() < mix.described_question_rate:
            pairs.append(add_description(rng, scene, make_presence_question(rng, scene, mix.presence_mix)))
        if rng.random() < mix.described_caption_rate:
            caption = make_caption_pair(rng, scene, mix.invention_rate, mix.omission_rate)
            pairs.append(add_description(rng, scene, caption))
        if mix.max_attribute_questions:
            pairs += sample_attribute_questions(rng, scene, mix.max_attribute_questions)
        return pairs + [make_presence_question(rng, scene, mix.presence_mix) for _ in range(mix.num_presence_questions)]

    def pack(self, rng: np.random.Generator, scene: RenderedScene, with_image: bool) -> PackedRow:
        """Pack pairs about one scene into a row.

        Args:
            rng: Source of all random choices.
            scene: The scene.
            with_image: Whether the row begins with image tokens.

        Returns:
            The row. Pairs that do not fit are dropped.
        """
        prefix = [self.start] if rng.random() < 0.8 else []  # some servers leave the start token out
        conversation = rng.random() < self.mix.conversation_rate
        if with_image:
            prefix = prefix + self.encode("USER: ") + [self.image] * IMAGE_TOKENS + self.encode("\n")
        size = len(prefix)
        no_labels, unknown = [-1] * size, [UNKNOWN_ATTRIBUTES] * size
        row = PackedRow(
            prefix, [IGNORE_INDEX] * size, [0] * size, list(range(size)), no_labels, [*no_labels], unknown, [[]] * size
        )
        scene_attributes = compute_category_attributes(scene)
        pairs = self.build_pairs(rng, scene)
        if conversation:
            rng.shuffle(pairs)
        segment, offset = 0, size
        for turn, pair in enumerate(pairs):
            is_first = turn == 0 or not conversation
            prefix_text = "" if with_image and is_first else "USER: "
            question = self.encode(f"{prefix_text}{pair.question} ASSISTANT:")
            answer = [*self.encode(" " + pair.answer), self.end]
            length = len(question) + len(answer)
            if len(row.ids) + length > self.mix.max_length:
                if turn:
                    break
                answer = answer[: self.mix.max_length - len(row.ids) - len(question)]
                length = len(question) + len(answer)
            if is_first:
                segment, offset = segment + 1, size
            presence_labels, attributes = [-1] * length, [UNKNOWN_ATTRIBUTES] * length
            if pair.category_word and with_image:
                token = self.encode(" " + pair.category_word)[-1]
                if token in question:
                    word_index = len(question) - 1 - question[::-1].index(token)
                    presence_labels[word_index] = int(pair.present)
                    attributes[word_index] = scene_attributes.get(
                        CATEGORY_BY_WORD[pair.category_word], ABSENT_ATTRIBUTES
                    )
                    if pair.kind == "detail":
                        attributes[len(question) - 1] = attributes[word_index]
            row.ids += question + answer
            row.labels += [IGNORE_INDEX] * len(question) + answer
            row.segments += [segment] * length
            row.positions += range(offset, offset + length)
            row.kinds += [-1] * len(question) + [KIND_IDS[pair.kind]] * len(answer)
            row.presence_labels += presence_labels
            row.attributes += attributes
            enumerates = pair.kind == "caption" or pair.question in LIST_PROMPTS
            row.named_before += [[]] * len(question) + (
                self._list_named_before(answer) if enumerates else [[]] * len(answer)
            )
            offset += length
        return row

    def batch(self, rng: np.random.Generator, scenes: list[RenderedScene], with_image: list[bool]) -> PackedBatch:
        """Pack one row per scene and pad the rows to a multiple of eight tokens."""
        rows = [self.pack(rng, scene, image) for scene, image in zip(scenes, with_image, strict=True)]
        length = -(-max(len(row.ids) for row in rows) // 8) * 8
        ids = _pad_rows([row.ids for row in rows], length, self.padding)
        segments = _pad_rows([row.segments for row in rows], length, -1)
        order = torch.arange(length)
        same = segments[:, :, None] == segments[:, None, :]
        visible = (order[None, :] <= order[:, None])[None] & (same | (segments[:, None, :] == 0))
        return PackedBatch(
            ids,
            _pad_rows([row.labels for row in rows], length, IGNORE_INDEX),
            _pad_rows([row.positions for row in rows], length, 0),
            _pad_rows([row.kinds for row in rows], length, -1),
            _pad_rows([row.presence_labels for row in rows], length, -1),
            _pad_rows([_attribute_indices(row.attributes) for row in rows], length * 3, -1).view(len(rows), length, 3),
            _pad_rows([_flatten_named(row.named_before) for row in rows], length * MAX_NAMED, -1).view(
                len(rows), length, MAX_NAMED
            ),
            torch.zeros(visible.shape).masked_fill_(~visible, -1e9)[:, None],
        )

    def _list_named_before(self, answer: list[int]) -> list[list[int]]:
        before: list[list[int]] = []
        named_before: list[int] = []
        for token in answer:
            before.append(named_before)
            named_before = named_before + [word for word in self._words_for.get(token, []) if word not in named_before]
        return before

    def build_object_weights(self) -> torch.Tensor:
        """Return the loss weight of each token, [vocabulary]: tokens that name objects count double."""
        weights = torch.ones(len(self.tokenizer))
        for category in CATEGORIES:
            for word in (category.name, category.plural_name):
                weights[self.encode(" " + word)[0]] = OBJECT_WORD_WEIGHT
        return weights


def _flatten_named(named_before: list[list[int]]) -> list[int]:
    return [word for words in named_before for word in (words + [-1] * MAX_NAMED)[:MAX_NAMED]]


def _attribute_indices(attributes: list[ObjectAttributes]) -> list[int]:
    return [index for known in attributes for index in (known.count, known.cell, known.colour)]


def _pad_rows(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])
