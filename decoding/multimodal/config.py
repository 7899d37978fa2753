"""Load the config of a checkpoint, after a check of its family."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from decoding.errors import Unsupported
from decoding.multimodal.checkpoint_errors import explain_checkpoint_errors
from decoding.multimodal.model_families import require_family


def load_config(source: str) -> Any:
    """Load the config of a checkpoint.

    Args:
        source: Folder or hub id.

    Returns:
        The config of transformers.

    Raises:
        Unsupported: There is no config, or its family is not supported.
    """
    with explain_checkpoint_errors(source, "config.json"):
        content, _ = PreTrainedConfig.get_config_dict(source)
        if not content:
            raise Unsupported(
                f"{source} has no config.json, or an empty one, so that it is no model of transformers. Give the "
                "folder that has config.json, the safetensors files and the tokenizer, or a hub id as OWNER/NAME."
            )
        require_family(content, source)
        return AutoConfig.from_pretrained(source)
