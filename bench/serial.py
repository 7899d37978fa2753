"""The way the papers' own code decodes: request after request, branch after branch, one forward pass each."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache

from decoding.encoder import Encoded
from decoding.hf_engine.model import Model

Mix = Callable[[list[Tensor]], Tensor]


@torch.inference_mode()
def decode(model: Model, prompts: list[Encoded], mix: Mix, tokens: int) -> float:
    """Seconds per token after the first, greedy, each branch with a cache of its own."""
    caches = [DynamicCache() for _ in prompts]
    logits = [read(model, prompt, cache) for prompt, cache in zip(prompts, caches, strict=True)]
    token = int(mix(logits).argmax())
    began = time.perf_counter()
    for _ in range(tokens - 1):
        ids = torch.tensor([[token]])
        logits = [
            model.network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            for cache in caches
        ]
        token = int(mix(logits).argmax())
    return (time.perf_counter() - began) / (tokens - 1)


@torch.inference_mode()
def first_token(model: Model, prompts: list[Encoded]) -> float:
    """Seconds of the passes over the prompts of all branches, one after the other."""
    began = time.perf_counter()
    for prompt in prompts:
        read(model, prompt, DynamicCache())
    return time.perf_counter() - began


def read(model: Model, prompt: Encoded, cache: DynamicCache) -> Tensor:
    """The logits, [vocab], after a prompt."""
    logits: Tensor = model.network(
        input_ids=prompt.ids[None], **prompt.extras, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits[0, -1]
    return logits
