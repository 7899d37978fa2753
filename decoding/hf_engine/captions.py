"""Captions of images, from which an operator measures a model: their files, their images and their tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError

from decoding.errors import BadRequest
from decoding.hf_engine.model.model import Model
from decoding.prompt import ImageInput, Prompt
from decoding.text.prompt_encoder import ModelInputs

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
NUMBER = re.compile(r"\d+$")

Line = TypeVar("Line", bound=BaseModel)


class InvalidCaptions(Exception):
    """The captions cannot be used. The message names the file and the line."""


def read_lines(file: Path, line_class: type[Line]) -> list[Line]:
    """Read a file of JSON lines.

    Args:
        file: The file. Empty lines are skipped.
        line_class: Form of a line.

    Returns:
        The lines, at least one.

    Raises:
        InvalidCaptions: The file cannot be read, or a line has another form.
    """
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCaptions(f"{file} cannot be read: {error}") from None
    lines = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            lines.append(line_class.model_validate_json(text))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(map(str, first["loc"])) or "line"
            raise InvalidCaptions(f"{file}:{number}: {path}: {first['msg']}") from None
    if not lines:
        raise InvalidCaptions(f"{file} has no captions")
    return lines


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
    model: Model, images: CaptionImages, image_id: int | str, question: str, tokens: Sequence[int]
) -> tuple[ModelInputs, int]:
    """Encode a prompt with an image, and the caption that answers it.

    Args:
        model: The model.
        images: Folder of the image.
        image_id: Its id.
        question: The prompt.
        tokens: Token ids of the caption.

    Returns:
        The inputs, and the position of the first token of the caption.

    Raises:
        InvalidCaptions: Prompt and caption do not fit the model's context, or the model rejects the prompt.
    """
    try:
        prompt = model.encoder.encode(Prompt.from_text(question, images.load(image_id)))
    except BadRequest as error:
        raise InvalidCaptions(f"image_id {image_id!r}: {error.message}") from None
    inputs = prompt.with_tokens(tokens)
    if len(inputs) > model.max_model_len:
        raise InvalidCaptions(
            f"image_id {image_id!r}: prompt and caption have {len(inputs)} tokens; the model's context is "
            f"{model.max_model_len}"
        )
    return inputs, len(prompt)
