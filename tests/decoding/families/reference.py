"""Naive reference of a family: the model's own forward over all tokens for every token, without a cache."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from decoding.image_ops import add_noise
from decoding.multimodal.model_families import get_family
from decoding.multimodal.processor import load_processor
from decoding.prompt import ImageInput, Noise, Prompt
from tests.decoding.naive_reference import cut_layers, edit_attention, most_divergent_layer, raise_image_scores

NOISE_STEP, ALPHA, BETA = 500, 1.0, 0.1  # VCD's defaults
HEAD_FACTOR = 2.0  # VHR's
ATTENTION, GUIDANCE, FIRST_LAYER = 0.2, 1.1, 2  # PAI's

Inputs = dict[str, Tensor]


class FamilyReference:
    def __init__(self, folder: Path) -> None:
        config = AutoConfig.from_pretrained(folder)
        self.family = get_family(config)
        self.processor = load_processor(str(folder), self.family)
        self.network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.heads: int = config.get_text_config().num_attention_heads
        self.decoder: Any = reduce(getattr, self.family.decoder_path.split("."), self.network)
        self.outputs = [layer.self_attn.o_proj for layer in self.decoder.layers]
        self.closest = math.inf  # gap between the best two scores of any step so far

    def plain(self, prompt: Prompt, steps: int) -> list[int]:
        inputs = self.encode(prompt)
        return self.decode(lambda tokens: self.logits(inputs, tokens), steps)

    def vcd(self, prompt: Prompt, steps: int) -> list[int]:
        clear, noisy = self.encode(prompt), self.encode(prompt)
        noisy["pixel_values"] = self.add_noise(prompt, noisy["pixel_values"])

        def scores(tokens: list[int]) -> Tensor:
            clear_logits, noisy_logits = self.logits(clear, tokens), self.logits(noisy, tokens)
            likely = clear_logits.softmax(-1)
            mixed = (1 + ALPHA) * clear_logits - ALPHA * noisy_logits
            return mixed.masked_fill(likely < BETA * likely.max(), -torch.inf)

        return self.decode(scores, steps)

    def add_noise(self, prompt: Prompt, pixels: Tensor) -> Tensor:
        """Add noise to each image's pixels. Encoding an image alone shows how many of the pixels are its own."""
        axis = self.family.image_axis
        sizes = [self.encode(Prompt.from_text("?", one))["pixel_values"].shape[axis] for one in prompt.images]
        parts = pixels.split(sizes, axis)  # type: ignore[no-untyped-call]
        return torch.cat([add_noise(part, Noise(NOISE_STEP, place)) for place, part in enumerate(parts)], axis)

    def vhr(self, prompt: Prompt, steps: int) -> list[int]:
        inputs, factors = self.encode(prompt), self.choose_heads(prompt)

        def scores(tokens: list[int]) -> Tensor:
            with self.edit_heads(lambda layer, heads: heads * factors[layer][:, None]):
                return self.logits(inputs, tokens)

        return self.decode(scores, steps)

    def choose_heads(self, prompt: Prompt) -> list[Tensor]:
        """Compute the factors, [heads], of each layer."""
        without_image: list[Tensor] = []
        factors: list[Tensor] = []

        def capture(_: int, heads: Tensor) -> Tensor:
            without_image.append(heads[0, -1])
            return heads

        def choose(layer: int, heads: Tensor) -> Tensor:
            difference = (heads[0, -1] - without_image[layer]).norm(dim=-1)
            silent = without_image[layer].pow(2).sum(-1)
            is_outlier = (difference > outlier_bound(difference)) & (silent > outlier_bound(silent))
            difference[is_outlier] = 0
            median = difference.sort().values[(self.heads - 1) // 2]
            depth = len(self.outputs)
            chosen = layer == 1 or layer >= depth - round(14 / 32 * depth)
            factors.append(torch.where((difference > median) & chosen, HEAD_FACTOR, 1.0))
            return heads * factors[-1][:, None]

        with self.edit_heads(capture):
            self.logits(self.encode(prompt.without_images()), [])
        with self.edit_heads(choose):
            self.logits(self.encode(prompt), [])
        return factors

    def pai(self, prompt: Prompt, steps: int) -> list[int]:
        with_image, without_image = self.encode(prompt), self.encode(prompt.without_images())
        change = raise_image_scores(
            with_image["input_ids"][0] == self.network.config.image_token_id, ATTENTION, FIRST_LAYER
        )

        def scores(tokens: list[int]) -> Tensor:
            with edit_attention(self.decoder, change):
                seen = self.logits(with_image, tokens)
            unseen, likely = self.logits(without_image, tokens), seen.softmax(-1)
            return (GUIDANCE * (seen - unseen) + unseen).masked_fill(likely < BETA * likely.max(), -torch.inf)

        return self.decode(scores, steps)

    def dola(self, prompt: Prompt, steps: int) -> list[int]:
        inputs, half = self.encode(prompt), len(self.outputs) // 2

        def scores(tokens: list[int]) -> Tensor:
            last, early = self.logits(inputs, tokens), {}
            for depth in range(0, half, 2):
                with cut_layers(self.decoder, depth):
                    early[depth] = self.logits(inputs, tokens)
            likely = last.softmax(-1)
            return (last - early[most_divergent_layer(last, early)]).masked_fill(
                likely < BETA * likely.max(), -torch.inf
            )

        return self.decode(scores, steps)

    def encode(self, prompt: Prompt) -> Inputs:
        """Encode a prompt as the processor's documentation describes."""
        images = [image.visible for image in prompt.images]
        if self.network.config.model_type == "instructblip":
            text = "\n".join(message.text for message in prompt.messages)
            return dict(self.processor(images=images or None, text=text, return_tensors="pt"))
        messages = [{"role": m.role, "content": [template_part(part) for part in m.parts]} for m in prompt.messages]
        return dict(
            self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )

    def logits(self, inputs: Inputs, tokens: list[int]) -> Tensor:
        """Compute the logits, [vocab], after the prompt and `tokens`."""
        more = torch.tensor([tokens], dtype=torch.long)
        longer = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        for name in ("token_type_ids", "mm_token_type_ids"):
            longer |= {name: torch.zeros_like(more)} if name in inputs else {}
        everything = {**inputs, **{name: torch.cat([inputs[name], end], 1) for name, end in longer.items()}}
        network: Any = self.network
        if "qformer_input_ids" in inputs and "pixel_values" not in inputs:
            network = self.network.language_model
            everything = {name: everything[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            return network(**everything, use_cache=False).logits[0, -1]  # type: ignore[no-any-return]

    def decode(self, scores: Callable[[list[int]], Tensor], steps: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < steps:
            best = scores(tokens).topk(2)
            self.closest = min(self.closest, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
        return tokens

    @contextmanager
    def edit_heads(self, edit: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """Pass each layer's head outputs, [1, tokens, heads, head_dim], through `edit`."""

        def build_tap(layer: int) -> Callable[..., tuple[Tensor, ...]]:
            return lambda _, inputs: (edit(layer, inputs[0].unflatten(-1, (self.heads, -1))).flatten(-2),)

        handles = [module.register_forward_pre_hook(build_tap(layer)) for layer, module in enumerate(self.outputs)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def outlier_bound(values: Tensor) -> Tensor:
    """Return the mean plus one deviation of the population."""
    return values.mean() + values.std(correction=0)


def template_part(part: str | ImageInput) -> dict[str, Any]:
    return {"type": "image", "image": part.visible} if isinstance(part, ImageInput) else {"type": "text", "text": part}
