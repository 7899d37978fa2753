"""The checkpoint as the server process knows it: its prompts, its words and its limits, without its weights."""

from __future__ import annotations

import torch
from transformers import AutoConfig, GenerationConfig

from decoding.constraint import Constraints
from decoding.detokenizer import Vocabulary
from decoding.encoder import Encoder
from decoding.errors import Unsupported
from decoding.families import context_of, family_of
from decoding.processor import end_tokens, load_processor

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl")
WHY_NOT = {
    "gemma3": "vLLM's answers about pictures are not those of transformers",
    "instructblip": "vLLM has no such model",
}


class Reader:
    def __init__(self, model: str, context: int | None) -> None:
        """Raises:
        Unsupported: the model's family is unknown, or is not served by this engine.
        """
        config = AutoConfig.from_pretrained(model)
        family = family_of(config)
        if config.model_type not in FAMILIES:
            reason, known = WHY_NOT.get(config.model_type, "it was not tested there"), ", ".join(FAMILIES)
            raise Unsupported(
                f"Model type '{config.model_type}' is not served by the vLLM engine: {reason}. It runs {known}; "
                "for others start with --engine hf."
            )
        self.context = min(context_of(config), context or context_of(config))
        self.encoder = Encoder(load_processor(model, family), self.context, family)
        self.tokenizer = self.encoder.tokenizer
        self.words = Vocabulary(self.tokenizer)
        self.eos = end_tokens(generation_config(model), self.tokenizer)
        self.vocab: int = config.get_text_config().vocab_size
        self.constraints = Constraints(self.tokenizer, self.vocab, self.eos, torch.device("cpu"))
        self.image_token: int = self.tokenizer.convert_tokens_to_ids(self.encoder.processor.image_token)


def generation_config(model: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:  # the checkpoint has none
        return GenerationConfig()
