"""What a family must say, computed naively: the model's own forward over everything again for every token, no cache."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from decoding.families import family_of
from decoding.processor import load_processor
from decoding.prompt import Noise, Picture, Prompt
from decoding.tensors import noised
from tests.decoding.naive import changed, cut, louder, most_apart

NOISE_STEP, ALPHA, BETA = 500, 1.0, 0.1  # VCD's defaults
LOUDER = 2.0  # VHR's
ATTENTION, GUIDANCE, FIRST_LAYER = 0.2, 1.1, 2  # PAI's

Inputs = dict[str, Tensor]


class Naive:
    def __init__(self, folder: Path) -> None:
        config = AutoConfig.from_pretrained(folder)
        self.family = family_of(config)
        self.processor = load_processor(str(folder), self.family)
        self.network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.heads: int = config.get_text_config().num_attention_heads
        self.outputs = [m for name, m in self.network.named_modules() if name.endswith("self_attn.o_proj")]
        self.decoder: Any = reduce(getattr, self.family.decoder.split("."), self.network)
        self.closest = math.inf  # gap between the best two scores of any step so far

    def plain(self, prompt: Prompt, steps: int) -> list[int]:
        inputs = self.read(prompt)
        return self.say(lambda said: self.logits(inputs, said), steps)

    def vcd(self, prompt: Prompt, steps: int) -> list[int]:
        clear, noisy = self.read(prompt), self.read(prompt)
        noisy["pixel_values"] = self.blurred(prompt, noisy["pixel_values"])

        def scores(said: list[int]) -> Tensor:
            seen, blurred = self.logits(clear, said), self.logits(noisy, said)
            likely = seen.softmax(-1)
            mixed = (1 + ALPHA) * seen - ALPHA * blurred
            return mixed.masked_fill(likely < BETA * likely.max(), -torch.inf)

        return self.say(scores, steps)

    def blurred(self, prompt: Prompt, pixels: Tensor) -> Tensor:
        """Every picture's pixels with noise of its own; how many are its own is found by reading it alone."""
        axis = self.family.picture_axis
        sizes = [self.read(Prompt.of("?", one))["pixel_values"].shape[axis] for one in prompt.pictures]
        parts = pixels.split(sizes, axis)  # type: ignore[no-untyped-call]
        return torch.cat([noised(part, Noise(NOISE_STEP, place)) for place, part in enumerate(parts)], axis)

    def vhr(self, prompt: Prompt, steps: int) -> list[int]:
        seeing, factors = self.read(prompt), self.reinforced(prompt)

        def scores(said: list[int]) -> Tensor:
            with self.hooked(lambda layer, heads: heads * factors[layer][:, None]):
                return self.logits(seeing, said)

        return self.say(scores, steps)

    def reinforced(self, prompt: Prompt) -> list[Tensor]:
        """[heads] for each layer."""
        blind: list[Tensor] = []
        factors: list[Tensor] = []

        def listen(_: int, heads: Tensor) -> Tensor:
            blind.append(heads[0, -1])
            return heads

        def choose(layer: int, heads: Tensor) -> Tensor:
            difference = (heads[0, -1] - blind[layer]).norm(dim=-1)
            silent = blind[layer].pow(2).sum(-1)
            loud = (difference > spread(difference)) & (silent > spread(silent))
            difference[loud] = 0
            median = difference.sort().values[(self.heads - 1) // 2]
            depth = len(self.outputs)
            chosen = layer == 1 or layer >= depth - round(14 / 32 * depth)
            factors.append(torch.where((difference > median) & chosen, LOUDER, 1.0))
            return heads * factors[-1][:, None]

        with self.hooked(listen):
            self.logits(self.read(prompt.without_pictures()), [])
        with self.hooked(choose):
            self.logits(self.read(prompt), [])
        return factors

    def pai(self, prompt: Prompt, steps: int) -> list[int]:
        seeing, blind = self.read(prompt), self.read(prompt.without_pictures())
        change = louder(seeing["input_ids"][0] == self.network.config.image_token_id, ATTENTION, FIRST_LAYER)

        def scores(said: list[int]) -> Tensor:
            with changed(self.decoder, change):
                seen = self.logits(seeing, said)
            unseen, likely = self.logits(blind, said), seen.softmax(-1)
            return (GUIDANCE * (seen - unseen) + unseen).masked_fill(likely < BETA * likely.max(), -torch.inf)

        return self.say(scores, steps)

    def dola(self, prompt: Prompt, steps: int) -> list[int]:
        inputs, half = self.read(prompt), len(self.outputs) // 2

        def scores(said: list[int]) -> Tensor:
            last, early = self.logits(inputs, said), {}
            for depth in range(0, half, 2):
                with cut(self.decoder, depth):
                    early[depth] = self.logits(inputs, said)
            likely = last.softmax(-1)
            return (last - early[most_apart(last, early)]).masked_fill(likely < BETA * likely.max(), -torch.inf)

        return self.say(scores, steps)

    def read(self, prompt: Prompt) -> Inputs:
        """Through the processor as its documentation says."""
        pictures = [picture.image for picture in prompt.pictures]
        if self.network.config.model_type == "instructblip":
            text = "\n".join(message.text for message in prompt.messages)
            return dict(self.processor(images=pictures or None, text=text, return_tensors="pt"))
        said = [{"role": m.role, "content": [part_of(part) for part in m.parts]} for m in prompt.messages]
        return dict(
            self.processor.apply_chat_template(
                said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )

    def logits(self, inputs: Inputs, said: list[int]) -> Tensor:
        """[vocab] after the prompt and `said`."""
        more = torch.tensor([said], dtype=torch.long)
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

    def say(self, scores: Callable[[list[int]], Tensor], steps: int) -> list[int]:
        said: list[int] = []
        while len(said) < steps:
            best = scores(said).topk(2)
            self.closest = min(self.closest, float(best.values[0] - best.values[1]))
            said.append(int(best.indices[0]))
        return said

    @contextmanager
    def hooked(self, edit: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """`edit` is given each layer's head outputs, [1, tokens, heads, head_dim], and may change them."""

        def hook(layer: int) -> Callable[..., tuple[Tensor, ...]]:
            return lambda _, inputs: (edit(layer, inputs[0].unflatten(-1, (self.heads, -1))).flatten(-2),)

        hooks = [module.register_forward_pre_hook(hook(layer)) for layer, module in enumerate(self.outputs)]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()


def spread(values: Tensor) -> Tensor:
    """Mean plus one deviation of the population."""
    return values.mean() + values.std(correction=0)


def part_of(part: str | Picture) -> dict[str, Any]:
    return {"type": "image", "image": part.image} if isinstance(part, Picture) else {"type": "text", "text": part}
