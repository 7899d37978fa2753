"""The checkpoint in the server process: its prompts, its tokens and its limits, without its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig

from decoding.errors import Unsupported
from decoding.multimodal.config import load_config
from decoding.multimodal.model_families import get_family, get_max_model_len
from decoding.multimodal.processor import get_eos_token_ids, load_processor
from decoding.multimodal.weight_files import find_weight_folder, read_weight_counts
from decoding.pipeline.attention_statistics import load_attention_statistics
from decoding.text.chat_template import use_chat_template
from decoding.text.detokenizer import TokenText
from decoding.text.grammar_mask import GrammarCompiler
from decoding.text.prompt_encoder import PromptEncoder

SERVED_FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl")
REFUSAL_REASONS = {
    "gemma3": "vLLM's answers about images are not those of transformers",
    "instructblip": "vLLM has no such model",
}


class Checkpoint:
    """Encoder, tokenizer and limits of a model that vLLM runs."""

    def __init__(
        self,
        model: str,
        max_model_len: int | None,
        chat_template: Path | None = None,
        attention_statistics: Path | None = None,
    ) -> None:
        """Read a checkpoint.

        Args:
            model: Folder or hub id.
            max_model_len: Most tokens of prompt and answer together. None: as many as the model takes.
            chat_template: File with a Jinja template. None: the checkpoint's.
            attention_statistics: File of statistics of the model, which is checked here. The workers read it.

        Raises:
            Unsupported: This engine does not serve the model's family, or its files are damaged.
        """
        config = load_config(model)
        family = get_family(config)
        if config.model_type not in SERVED_FAMILIES:
            reason = REFUSAL_REASONS.get(config.model_type, "it was not tested there")
            raise Unsupported(
                f"Model type '{config.model_type}' is not served by the vLLM engine: {reason}. It runs "
                f"{', '.join(SERVED_FAMILIES)}; for others start with --engine hf."
            )
        load_attention_statistics(attention_statistics, config)
        if (folder := find_weight_folder(model)) is not None:
            read_weight_counts(folder)
        limit = get_max_model_len(config)
        self.max_model_len = min(limit, max_model_len or limit)
        self.encoder = PromptEncoder(load_processor(model, family), self.max_model_len, family)
        use_chat_template(self.encoder, chat_template)
        self.tokenizer = self.encoder.tokenizer
        self.token_text = TokenText(self.tokenizer)
        self.eos_token_ids = get_eos_token_ids(load_generation_config(model), self.tokenizer)
        self.vocab_size: int = config.get_text_config().vocab_size
        self.grammars = GrammarCompiler(self.tokenizer, self.vocab_size, self.eos_token_ids, torch.device("cpu"))
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(self.encoder.processor.image_token)

    def require_scorable_images(self) -> None:
        """Check that vLLM can compute log-probabilities of prompts with images, which ends on an unknown token.

        Raises:
            Unsupported: The image token is beyond the vocabulary.
        """
        if self.image_token_id >= self.vocab_size:
            message = "vLLM has no log-probabilities of prompts with images for this model."
            raise Unsupported(message, param="prompt_logprobs")


def load_generation_config(model: str) -> GenerationConfig:
    """Load the generation config of a checkpoint, or a default one where the checkpoint has none."""
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return GenerationConfig()
