"""A checkpoint's processor: its tokenizer, what it does to pictures, and the tokens that end an answer."""

from __future__ import annotations

from typing import Any

import transformers

from decoding.errors import Unsupported
from decoding.families import Family


def end_tokens(generation: Any, tokenizer: Any) -> list[int]:
    """As `generate` takes them: one id, several, or none."""
    ids = generation.eos_token_id
    ids = tokenizer.eos_token_id if ids is None else ids
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def load_processor(model: str, family: Family) -> Any:
    """Raises:
    Unsupported: the checkpoint's processor needs a package that is not installed, or has no chat template.
    """
    loader = transformers.AutoProcessor if family.processor is None else pictures_only(family.processor)
    try:
        processor = loader.from_pretrained(model)
    except ImportError as error:
        raise Unsupported(f"The model's processor needs a package that is not installed: {error}") from error
    if family.chats and chat_template(processor) is None:
        raise Unsupported("The checkpoint has no chat template, so messages cannot be put to this model.")
    return processor


def pictures_only(name: str) -> Any:
    """The processor class without its video processor.

    Decided here and not by what is installed, so that a prompt is read the same way with and without torchvision.
    """
    own: Any = getattr(transformers, name)

    class PicturesOnly(own):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in own.get_attributes() if part != "video_processor"]

    PicturesOnly.__name__ = name
    return PicturesOnly


def chat_template(processor: Any) -> Any:
    """The default one, where there are several."""
    given = processor.chat_template or processor.tokenizer.chat_template
    return given.get("default") if isinstance(given, dict) else given
