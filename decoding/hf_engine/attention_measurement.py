"""Measure the attention statistics of a model on captions of its own, whose objects are labelled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from decoding.errors import BadRequest
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.taps.attention import AttentionEdit
from decoding.prompt import ImageInput, Prompt
from decoding.text.prompt_encoder import ModelInputs

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
NUMBER = re.compile(r"\d+$")


class InvalidCaptions(Exception):
    """The captions cannot be used. The message names the file and the line."""


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
        inputs, start = encode_caption(model, caption, images, question, encoding["input_ids"])
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
        The captions.

    Raises:
        InvalidCaptions: The file cannot be read, or a line has another form.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCaptions(f"{file} cannot be read: {error}") from None
    captions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            captions.append(LabelledCaption.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(map(str, first["loc"])) or "line"
            raise InvalidCaptions(f"{file}:{number}: {path}: {first['msg']}") from None
    if not captions:
        raise InvalidCaptions(f"{file} has no captions")
    return captions


class CaptionImages:
    """Finds images by id: the name of a file, its stem, or the number at the end of its stem, as in COCO's names.

    Args:
        folder: Folder of the images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, set[Path]] = {}
        files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES] if folder.is_dir() else []
        for file in files:
            found = NUMBER.search(file.stem)
            for key in {file.name, file.stem, *([str(int(found[0]))] if found else [])}:
                self._files.setdefault(key, set()).add(file)

    def load(self, image_id: int | str) -> ImageInput:
        """Load an image.

        Args:
            image_id: Id of the image.

        Returns:
            The image.

        Raises:
            InvalidCaptions: The folder has no such image, or several, or it cannot be read.
        """
        files = self._files.get(str(image_id), set())
        if len(files) != 1:
            found = ", ".join(sorted(file.name for file in files)) or "no image"
            raise InvalidCaptions(f"image_id {image_id!r}: {self.folder} has {found} of this id")
        (file,) = files
        try:
            return ImageInput(Image.open(file).convert("RGB"))
        except OSError as error:
            raise InvalidCaptions(f"image_id {image_id!r}: {file} cannot be read: {error}") from None


def encode_caption(
    model: Model, caption: LabelledCaption, images: CaptionImages, question: str, tokens: Sequence[int]
) -> tuple[ModelInputs, int]:
    """Encode prompt and caption.

    Args:
        model: The model.
        caption: The caption.
        images: Folder of its image.
        question: Its prompt.
        tokens: Token ids of the caption.

    Returns:
        The inputs, and the position of the first token of the caption.

    Raises:
        InvalidCaptions: Prompt and caption do not fit the model's context, or the model rejects the prompt.
    """
    try:
        prompt = model.encoder.encode(Prompt.from_text(question, images.load(caption.image_id)))
    except BadRequest as error:
        raise InvalidCaptions(f"image_id {caption.image_id!r}: {error.message}") from None
    inputs = prompt.with_tokens(tokens)
    if len(inputs) > model.max_model_len:
        raise InvalidCaptions(
            f"image_id {caption.image_id!r}: prompt and caption have {len(inputs)} tokens; the model's context is "
            f"{model.max_model_len}"
        )
    return inputs, len(prompt)


def find_token(offsets: Sequence[tuple[int, int]], start: int) -> int:
    """Return the number of the token that holds a character. Tokens end where the text does, at the latest."""
    return next((number for number, (_, end) in enumerate(offsets) if end > start), 0)
