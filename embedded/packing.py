"""Packs many independent exchanges about one picture behind a single copy of its image tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from embedded.categories import BY_NAME, CATEGORIES
from embedded.details import ABSENT, NOTHING_KNOWN, Facts, facts_of, questions
from embedded.language import LIST_PROMPTS, Exchange, captioning, described, detail, listing, presence
from embedded.model import IMAGE_TOKENS
from embedded.picture import Picture

IGNORED = -100
SINGULAR = {word: name for name, category in BY_NAME.items() for word in (name, category.plural_name)}
KINDS = {"caption": 0, "presence": 1, "detail": 2}
OBJECT_WEIGHT = 2.0
MOST_SAID = 16


@dataclass(frozen=True)
class TextMix:
    """How often each kind of exchange occurs in a pack."""

    caption: float = 0.8
    second_caption: float = 0.0
    listing: float = 0.35
    detail: float = 0.5
    described: float = 0.08
    inventing: float = 0.25
    without_image: float = 0.06
    conversation: float = 0.10
    gullible: float = 0.0
    questions: int = 0  # at most, about number, position and colour
    presence: int = 12
    length: int = 248  # tokens that a pack has room for


@dataclass
class Pack:
    """One row. All lists have one entry per token."""

    ids: list[int]
    labels: list[int]
    segments: list[int]  # 0: the shared prefix, seen by all; k: seen by segment k only
    positions: list[int]
    kinds: list[int]  # of labelled tokens, see KINDS
    asked: list[int]  # at the word that names the asked category: is it present? else -1
    facts: list[Facts]  # at the same word, and where the answer to a question about details begins
    said: list[list[int]]  # words for the categories that the same enumeration has named before


@dataclass(frozen=True)
class PackBatch:
    ids: torch.Tensor  # [rows, length]
    labels: torch.Tensor
    positions: torch.Tensor
    kinds: torch.Tensor
    asked: torch.Tensor
    facts: torch.Tensor  # [rows, length, 3], -1 for what is not known
    said: torch.Tensor  # [rows, length, MOST_SAID], -1 where there is none
    mask: torch.Tensor  # [rows, 1, length, length]: 0 where a token may attend to another (last axis), else -1e9


class Packer:
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
        if text not in self._cache:
            if len(self._cache) > 100_000:
                self._cache.clear()
            self._cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def exchanges(self, random: np.random.Generator, picture: Picture) -> list[Exchange]:
        mix, chosen = self.mix, []
        if random.random() < mix.caption:
            chosen.append(captioning(random, picture, mix.inventing))
            if random.random() < mix.second_caption:
                chosen.append(captioning(random, picture, mix.inventing))
        if random.random() < mix.listing:
            chosen.append(listing(random, picture))
        if random.random() < mix.detail:
            chosen.append(detail(random, picture))
        if random.random() < mix.described:
            chosen.append(described(random, picture, presence(random, picture, mix.gullible)))
        if mix.questions:
            chosen += questions(random, picture, mix.questions)
        return chosen + [presence(random, picture, mix.gullible) for _ in range(mix.presence)]

    def pack(self, random: np.random.Generator, picture: Picture, with_image: bool) -> Pack:
        prefix = [self.start] if random.random() < 0.8 else []  # some servers leave the start token out
        conversation = random.random() < self.mix.conversation
        if with_image:
            prefix = prefix + self.encode("USER: ") + [self.image] * IMAGE_TOKENS + self.encode("\n")
        size = len(prefix)
        nothing, unknown = [-1] * size, [NOTHING_KNOWN] * size
        row = Pack(prefix, [IGNORED] * size, [0] * size, list(range(size)), nothing, [*nothing], unknown, [[]] * size)
        known = facts_of(picture)
        exchanges = self.exchanges(random, picture)
        if conversation:
            random.shuffle(exchanges)
        segment, offset = 0, size
        for number, exchange in enumerate(exchanges):
            first = number == 0 or not conversation
            lead = "" if with_image and first else "USER: "
            question = self.encode(f"{lead}{exchange.question} ASSISTANT:")
            answer = [*self.encode(" " + exchange.answer), self.end]
            added = len(question) + len(answer)
            if len(row.ids) + added > self.mix.length:
                if number:
                    break
                answer = answer[: self.mix.length - len(row.ids) - len(question)]
                added = len(question) + len(answer)
            if first:
                segment, offset = segment + 1, size
            asked, facts = [-1] * added, [NOTHING_KNOWN] * added
            if exchange.asked and with_image:
                word = self.encode(" " + exchange.asked)[-1]
                if word in question:
                    place = len(question) - 1 - question[::-1].index(word)
                    asked[place] = int(exchange.present)
                    facts[place] = known.get(SINGULAR[exchange.asked], ABSENT)
                    if exchange.kind == "detail":
                        facts[len(question) - 1] = facts[place]
            row.ids += question + answer
            row.labels += [IGNORED] * len(question) + answer
            row.segments += [segment] * added
            row.positions += range(offset, offset + added)
            row.kinds += [-1] * len(question) + [KINDS[exchange.kind]] * len(answer)
            row.asked += asked
            row.facts += facts
            enumerates = exchange.kind == "caption" or exchange.question in LIST_PROMPTS
            row.said += [[]] * len(question) + (self._said_before(answer) if enumerates else [[]] * len(answer))
            offset += added
        return row

    def batch(self, random: np.random.Generator, pictures: list[Picture], with_image: list[bool]) -> PackBatch:
        rows = [self.pack(random, picture, image) for picture, image in zip(pictures, with_image, strict=True)]
        length = -(-max(len(row.ids) for row in rows) // 8) * 8
        ids = _padded([row.ids for row in rows], length, self.padding)
        segments = _padded([row.segments for row in rows], length, -1)
        order = torch.arange(length)
        same = segments[:, :, None] == segments[:, None, :]
        visible = (order[None, :] <= order[:, None])[None] & (same | (segments[:, None, :] == 0))
        return PackBatch(
            ids,
            _padded([row.labels for row in rows], length, IGNORED),
            _padded([row.positions for row in rows], length, 0),
            _padded([row.kinds for row in rows], length, -1),
            _padded([row.asked for row in rows], length, -1),
            _padded([_indices(row.facts) for row in rows], length * 3, -1).view(len(rows), length, 3),
            _padded([_flat(row.said) for row in rows], length * MOST_SAID, -1).view(len(rows), length, MOST_SAID),
            torch.zeros(visible.shape).masked_fill_(~visible, -1e9)[:, None],
        )

    def _said_before(self, answer: list[int]) -> list[list[int]]:
        before: list[list[int]] = []
        said: list[int] = []
        for piece in answer:
            before.append(said)
            said = said + [word for word in self._words_for.get(piece, []) if word not in said]
        return before

    def object_weights(self) -> torch.Tensor:
        """[vocabulary]: words that name objects count double."""
        weights = torch.ones(len(self.tokenizer))
        for category in CATEGORIES:
            for word in (category.name, category.plural_name):
                weights[self.encode(" " + word)[0]] = OBJECT_WEIGHT
        return weights


def _flat(said: list[list[int]]) -> list[int]:
    return [word for words in said for word in (words + [-1] * MOST_SAID)[:MOST_SAID]]


def _indices(facts: list[Facts]) -> list[int]:
    return [index for known in facts for index in (known.count, known.cell, known.colour)]


def _padded(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])
