"""Load the network of a checkpoint with transformers, on the device and in the precision of the settings."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from decoding.errors import Unsupported
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal.checkpoint_errors import explain_checkpoint_errors
from decoding.multimodal.weight_files import find_weight_folder, read_weight_counts, require_memory


def load_network(settings: HFSettings) -> Any:
    """Load the network of `settings.model`. With the device "auto" it is split over several GPUs if there are any.

    Args:
        settings: Settings of the engine.

    Returns:
        The network, in evaluation mode.

    Raises:
        Unsupported: The weights are missing, damaged, or too large for the memory.
    """  # noqa: DOC502 - its functions raise it
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    is_split = settings.device == "auto" and torch.cuda.device_count() > 1
    default_dtype = torch.float32 if device == "cpu" else torch.bfloat16
    dtype = default_dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if (folder := find_weight_folder(settings.model)) is not None:
        counts = read_weight_counts(folder)
        if not is_split and settings.quantization is None:
            require_memory(settings.model, counts.compute_bytes(dtype), device)
    quantization_config = build_quantization_config(settings.quantization)
    with explain_checkpoint_errors(settings.model, "weights"):
        network = AutoModelForImageTextToText.from_pretrained(
            settings.model,
            dtype=dtype,
            device_map="auto" if is_split else device,
            use_safetensors=True,
            quantization_config=quantization_config,
        )
    return network.eval()


def build_quantization_config(quantization: str | None) -> Any:
    """Build the configuration of bitsandbytes.

    Args:
        quantization: "4bit", "8bit" or None.

    Returns:
        The configuration, or None.

    Raises:
        Unsupported: The value is another one, or bitsandbytes is not installed.
    """
    if quantization is None:
        return None
    if quantization not in ("4bit", "8bit"):
        raise Unsupported(f"Quantization is '4bit' or '8bit', not '{quantization}'.")
    if find_spec("bitsandbytes") is None:
        raise Unsupported("Quantization needs bitsandbytes: pip install '.[quantization]'.")
    return BitsAndBytesConfig(load_in_4bit=quantization == "4bit", load_in_8bit=quantization == "8bit")


def get_base_model(network: Any) -> Any:
    """Return the part of a network that maps pixels and ids to the last hidden states."""
    return InstructBlipBaseModel(network) if network.config.model_type == "instructblip" else network.model


class InstructBlipBaseModel:
    """InstructBLIP without its head, which transformers offers only together with it.

    The Q-Former reads the instruction and the image, and its queries precede the text's first token. Rows without an
    image go to the language model alone: the text, and no queries.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.max_qformer_tokens: int = network.config.qformer_config.max_position_embeddings

    def __call__(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model on [rows, tokens] ids and on the images of the rows that have one."""
        embeddings = self.network.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            assert qformer_input_ids is not None
            assert qformer_attention_mask is not None
            # The Q-Former has no positions beyond this; the language model still reads the whole text.
            longest = self.max_qformer_tokens
            queries = self.network.get_image_features(
                pixel_values, qformer_input_ids[:, :longest], qformer_attention_mask[:, :longest]
            ).pooler_output
            is_image = (input_ids == self.network.config.image_token_id)[..., None]
            embeddings = embeddings.masked_scatter(is_image, queries.to(embeddings))
        return self.network.language_model.model(inputs_embeds=embeddings, **kwargs)
