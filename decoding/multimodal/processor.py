"""Load a checkpoint's processor: tokenizer, image processor, chat template and end tokens."""

from __future__ import annotations

from typing import Any

import transformers

from decoding.errors import Unsupported
from decoding.multimodal.checkpoint_errors import explain_checkpoint_errors
from decoding.multimodal.image_processor import process_in_strips
from decoding.multimodal.image_processor_cache import cache_results
from decoding.multimodal.model_families import ModelFamily


def load_processor(model: str, family: ModelFamily) -> Any:
    """Load the processor of a checkpoint.

    Args:
        model: Folder or hub id.
        family: Family of the checkpoint.

    Returns:
        A processor of transformers, without a video processor.

    Raises:
        Unsupported: The processor cannot be loaded, or needs a package that is not installed.
    """
    processor_class = family.processor_class
    loader = transformers.AutoProcessor if processor_class is None else without_video_processor(processor_class)
    try:
        with explain_checkpoint_errors(model, "processor"):
            processor = loader.from_pretrained(model)
    except ImportError as error:
        raise Unsupported(f"The model's processor needs a package that is not installed: {error}") from error
    process_in_strips(processor.image_processor)
    cache_results(processor.image_processor)
    return processor


def without_video_processor(name: str) -> Any:
    """Return a subclass of the processor class `name` that has no video processor.

    The subclass is used whether or not torchvision is installed, so that a prompt is encoded alike on both.

    Returns:
        The subclass, under the same class name.
    """
    base: Any = getattr(transformers, name)

    class ImageProcessorOnly(base):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [attribute for attribute in base.get_attributes() if attribute != "video_processor"]

    ImageProcessorOnly.__name__ = name
    return ImageProcessorOnly


def get_chat_template(processor: Any) -> Any:
    """Return the default chat template of a processor that has one or several; None if it has none."""
    template = processor.chat_template or processor.tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def get_eos_token_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Return the end tokens as `generate` of transformers reads them: one, several, or none."""
    ids = generation_config.eos_token_id
    ids = tokenizer.eos_token_id if ids is None else ids
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
