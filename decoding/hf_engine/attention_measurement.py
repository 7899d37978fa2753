"""Measure the attention statistics of a model on captions of its own, whose objects are labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from decoding.hf_engine.captions import CaptionImages, encode_caption, read_lines
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.taps.attention import AttentionEdit


class MentionLabel(BaseModel):
    """An object that a caption mentions, by its characters."""

    start: int
    end: int
    hallucinated: bool


class LabelledCaption(BaseModel):
    """A line of the file of captions. Other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    image_id: int | str
    caption: str
    mentions: tuple[MentionLabel, ...]


@dataclass
class AttentionMeans:
    """Means of the attention to the tokens of the answer, over mentions.

    Attributes:
        sums: [2, layers, heads] sums for real and hallucinated mentions.
        counts: Numbers of these mentions.
    """

    sums: Tensor
    counts: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def real(self) -> Tensor:
        """[layers, heads] means for real mentions."""
        return (self.sums[0] / self.counts[0]).float()

    @property
    def hallucinated(self) -> Tensor:
        """[layers, heads] means for hallucinated mentions."""
        return (self.sums[1] / self.counts[1]).float()

    @classmethod
    def zeros(cls, model: Model) -> AttentionMeans:
        """Return means without mentions."""
        return cls(torch.zeros(2, model.num_layers, model.head_tap.num_heads, dtype=torch.float64))

    def add_caption(self, model: Model, caption: LabelledCaption, images: CaptionImages, question: str) -> None:
        """Add the mentions of one caption, in one pass.

        The attention of a mention is that of the token before it, whose output is the mention's first token: for each
        head the mean over the tokens of the caption up to there. So the first token of a caption has none.

        Args:
            model: The model.
            caption: The caption.
            images: Folder of its image.
            question: Its prompt.
        """
        encoding = model.encoder.tokenizer(caption.caption, add_special_tokens=False, return_offsets_mapping=True)
        numbers = [find_token(encoding["offset_mapping"], mention.start) for mention in caption.mentions]
        labels = [int(mention.hallucinated) for mention in caption.mentions]
        mentions = [(number, label) for number, label in zip(numbers, labels, strict=True) if number]
        if not mentions:
            return
        inputs, start = encode_caption(model, images, caption.image_id, question, encoding["input_ids"])
        before = torch.tensor([number for number, _ in mentions])  # tokens of the caption before each mention
        keys = torch.arange(len(inputs))
        is_seen = (keys >= start) & (keys < start + before[:, None])  # [mentions, keys]

        def observe(layer: int, weights: Tensor) -> None:  # [mentions, heads, keys]
            attention = (weights.cpu().double() * is_seen[:, None]).sum(-1) / before[:, None]
            for own, (_, label) in zip(attention, mentions, strict=True):
                self.sums[label, layer] += own

        tokens = (start + before - 1)[None].to(model.device)
        edit = AttentionEdit(slice(0, 1), tokens, observe_weights=observe)
        with torch.inference_mode(), model.attention_tap.edit([edit]):
            model.prefill([inputs])
        for _, label in mentions:
            self.counts[label] += 1


def read_captions(file: Path) -> list[LabelledCaption]:
    """Read the lines that `onlyseen-eval score chair --per-caption` writes.

    Args:
        file: File of JSON lines.

    Returns:
        The captions. A file that cannot be used raises `InvalidCaptions`.
    """
    return read_lines(file, LabelledCaption)


def find_token(offsets: Sequence[tuple[int, int]], start: int) -> int:
    """Return the number of the token that holds a character. Tokens end where the text does, at the latest."""
    return next((number for number, (_, end) in enumerate(offsets) if end > start), 0)
