"""The strategies as their papers have them, without an engine: every branch from scratch at every token.

No cache, no batch, no hook that is shared with the engine; formulas written out once more, slowly, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from decoding.answer import Heat
from decoding.pictures import smooth
from decoding.prompt import Picture, Prompt
from decoding.strategies.agla import AGLA
from decoding.strategies.avisc import AvisC
from decoding.strategies.deco import DeCo
from decoding.strategies.dola import DoLa
from decoding.strategies.pai import PAI
from decoding.strategies.paint import PAINT
from decoding.strategies.sid import SID
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategies.vhr import VHR
from decoding.strategy import Strategy
from tests.decoding.hf_engine.rules import mixed
from tests.decoding.naive import Change, changed, cut, hidden, louder

Factors = Mapping[tuple[int, int], float]  # (layer, head) -> what its output is multiplied by


@dataclass(frozen=True)
class Read:
    """A prompt as the model takes it."""

    ids: Tensor  # [length]
    pixels: Tensor | None  # [pictures, 3, side, side]


@dataclass
class Told:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of each token, after the strategies
    raw: list[Tensor] = field(default_factory=list)  # [vocab] the main branch at each token


class Reference:
    """`relevance` stands for the matcher."""

    def __init__(self, folder: Path, relevance: Callable[[Picture, str], Heat]) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.relevance = relevance
        self.decoder = self.model.model.language_model
        self.layers = self.decoder.layers

    def decode(self, stack: Sequence[Strategy], prompt: Prompt, length: int, *, ends: bool = False) -> Told:
        """`length` greedy tokens, or with `ends` as many as come before the model ends its answer."""
        factors: Factors = {}
        others: dict[str, Read] = {}
        description: list[Tensor] = []  # log P_j, [vocab] each
        changes: list[Change] = []
        unseen: dict[str, Change] = {}  # in a branch
        for depth, strategy in enumerate(stack):
            match strategy:
                case VCD():
                    others["vcd"] = self.noisy(self.read(prompt), strategy)
                case AGLA():
                    others["agla"] = self.read(prompt.map_pictures(self.mask(strategy.text or prompt.question)))
                case VHR():
                    factors = self.reinforced(self.read(prompt), self.read(prompt.without_pictures()), strategy)
                case PAI():
                    others["pai"] = self.read(prompt.without_pictures())
                    visual = self.read(prompt).ids == self.model.config.image_token_id
                    changes.append(louder(visual, strategy.alpha, strategy.first_layer))
                case SID() | AvisC():
                    others[strategy.name] = self.read(prompt)
                    unseen[strategy.name] = hidden(self.unseen(self.read(prompt), strategy))
                case PAINT():
                    changes.append(self.painted(prompt, strategy))
                case VDGD():
                    prompt, description = self.described(stack[depth + 1 :], prompt, strategy)
        main, told = self.read(prompt), Told()
        while len(told.tokens) < length:
            z = self.logits(main, told.tokens, factors, changes=changes)
            branches = {
                name: self.logits(read, told.tokens, {}, changes=[unseen[name]] if name in unseen else [])
                for name, read in others.items()
            }
            scores = z
            for strategy in reversed(stack):
                early = {
                    depth: self.logits(main, told.tokens, factors, changes=changes, depth=depth)
                    for depth in self.listened(strategy)
                }
                scores = mixed(strategy, scores, z, branches, early, description)
            token = int(scores.argmax())
            told.tokens.append(token)
            told.logprobs.append(float(scores.log_softmax(-1)[token]))
            told.raw.append(z)
            if ends and token == self.processor.tokenizer.eos_token_id:
                break
        return told

    def read(self, prompt: Prompt) -> Read:
        said = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        text = self.processor.apply_chat_template(said, add_generation_prompt=True)
        images = [picture.image for picture in prompt.pictures]
        read = self.processor(text=text, images=images or None, return_tensors="pt")
        return Read(read["input_ids"][0], read.get("pixel_values"))

    @torch.no_grad()
    def logits(
        self,
        read: Read,
        said: Sequence[int],
        factors: Factors,
        heads: list[Tensor] | None = None,
        changes: Sequence[Change] = (),
        depth: int | None = None,
    ) -> Tensor:
        """[vocab] after prompt and answer so far. `heads` gets each layer's head outputs at the last position.

        `changes` edit the attention; with `depth`, the model ends after so many layers.
        """
        ids = torch.cat([read.ids, torch.tensor(said, dtype=torch.long)])[None]
        inside = changed(self.decoder, *changes) if changes else nullcontext()
        with self.edited(factors, [] if heads is None else heads), inside, cut(self.decoder, depth):
            out = self.model(input_ids=ids, pixel_values=read.pixels, use_cache=False)
        return out.logits[0, -1].double()

    @contextmanager
    def edited(self, factors: Factors, heads: list[Tensor]) -> Iterator[None]:
        count = self.model.config.text_config.num_attention_heads

        def edit(layer: int) -> Callable[..., tuple[Tensor]]:
            def hook(_: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
                outputs = list(inputs[0].chunk(count, dim=-1))
                heads.append(torch.stack([output[0, -1] for output in outputs]).double())
                return (torch.cat([output * factors.get((layer, i), 1.0) for i, output in enumerate(outputs)], -1),)

            return hook

        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(edit(number)) for number, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def listened(self, strategy: Strategy) -> list[int]:
        """After how many layers."""
        layers = len(self.layers)
        match strategy:
            case DoLa(bucket="high"):
                return [*range(layers // 2, layers, 2)]
            case DoLa():
                return [*range(2 if self.model.config.tie_word_embeddings else 0, layers // 2, 2)]
            case DeCo():
                return [depth for depth in range(layers) if round(20 / 32 * layers) <= depth <= round(28 / 32 * layers)]
            case _:
                return []

    def noisy(self, read: Read, vcd: VCD) -> Read:
        """Forward diffusion, step by step."""
        left = 1.0
        for u in np.linspace(-6, 6, 1000)[: vcd.noise_step + 1]:
            left *= 1 - (1 / (1 + math.exp(-u)) * (5e-3 - 1e-5) + 1e-5)
        assert read.pixels is not None
        noise = torch.randn(read.pixels.shape, generator=torch.Generator().manual_seed(vcd.noise_seed))
        return replace(read, pixels=math.sqrt(left) * read.pixels + math.sqrt(1 - left) * noise)

    def mask(self, text: str) -> Callable[[Picture], Picture]:
        def masked(picture: Picture) -> Picture:
            heat = self.relevance(picture, text)
            relevance = smooth(heat)
            descending = np.sort(relevance, axis=None)[::-1]
            threshold = descending[int(heat.side * heat.side * min(1 - heat.similarity / 2, 1 - 1e-5))]
            pixels = np.array(picture.image)
            for y, row in enumerate(pixels):
                for x in range(len(row)):
                    at = int((y + 0.5) * heat.side / len(pixels)), int((x + 0.5) * heat.side / len(row))
                    if relevance[at] < threshold:
                        row[x] = 0
            return picture.showing(Image.fromarray(pixels))

        return masked

    def reinforced(self, seeing: Read, blind: Read, vhr: VHR) -> Factors:
        """One layer after the other, each from a pass in which the heads chosen below it are reinforced already."""
        depth = len(self.layers)
        wanted = {1} | {layer for layer in range(depth) if depth - layer <= round(vhr.late * depth)}
        factors: dict[tuple[int, int], float] = {}
        for layer in sorted(wanted):
            with_picture: list[Tensor] = []
            without: list[Tensor] = []
            self.logits(seeing, [], factors, with_picture)
            self.logits(blind, [], {}, without)
            one, other = with_picture[layer].numpy(), without[layer].numpy()
            divergence = np.sqrt(((one - other) ** 2).sum(-1))
            activity = (other**2).sum(-1)
            loud = (divergence > divergence.mean() + divergence.std()) & (activity > activity.mean() + activity.std())
            divergence[loud] = 0
            for head in np.flatnonzero(divergence > np.median(divergence)):
                factors[layer, int(head)] = vhr.alpha
        return factors

    @torch.no_grad()
    def painted(self, prompt: Prompt, paint: PAINT) -> Change:
        """Both sets of patches, from the attention that the vision tower itself gives out."""
        read, config = self.read(prompt), self.model.config.vision_config
        own, config._attn_implementation = config._attn_implementation, "eager"
        seen = self.model.model.vision_tower(read.pixels, output_attentions=True).attentions
        config._attn_implementation = own
        first, late = (layer[0, :, 0, 1:].sum(0).numpy() for layer in (seen[0], seen[-2]))
        low, high = np.percentile(late, [25, 75])
        local = set(np.argsort(-first)[: int(paint.ratio * len(first))])
        summary = set(np.flatnonzero(late > high + 1.5 * (high - low)))
        louder_by = torch.tensor(
            [paint.beta if j in summary else paint.alpha if j in local else 0.0 for j in range(len(first))]
        )
        heads = None
        if paint.modulation == "sensitive":
            with_picture: list[Tensor] = []
            without: list[Tensor] = []
            self.logits(read, [], {}, with_picture)
            self.logits(self.read(prompt.without_pictures()), [], {}, without)
            moved = (torch.stack(with_picture) - torch.stack(without)).norm(dim=-1)
            heads = moved / moved.mean(-1, keepdim=True)
        return louder(read.ids == self.model.config.image_token_id, louder_by, paint.first_layer, heads)

    @torch.no_grad()
    def unseen(self, read: Read, strategy: SID | AvisC) -> dict[int, list[int]]:
        """Layer -> the tokens that the branch does not see, by what the model's own attention gives out."""
        config = self.decoder.config
        own, config._attn_implementation = config._attn_implementation, "eager"
        out = self.model(input_ids=read.ids[None], pixel_values=read.pixels, output_attentions=True)
        config._attn_implementation = own
        picture = (read.ids == self.model.config.image_token_id).nonzero().flatten().tolist()
        drawn = np.stack([layer[0, :, -1, picture].mean(0).numpy() for layer in out.attentions])  # [layers, tokens]
        if isinstance(strategy, SID):
            kept = np.argsort(drawn[strategy.layer - 1])[: int(strategy.kept * len(picture))]
            first = strategy.layer
        else:
            shares = drawn.sum(1) / drawn.sum()
            looking, held = [], 0.0
            for layer in np.argsort(-shares):
                if held < strategy.gamma:
                    looking.append(layer)
                held += shares[layer]
            mean = drawn[looking].mean(0)
            kept, first = np.flatnonzero(mean >= mean.mean() + strategy.deviations * mean.std()), 0
        gone = [place for number, place in enumerate(picture) if number not in kept]
        return dict.fromkeys(range(first, len(self.layers)), gone)

    def described(self, inner: Sequence[Strategy], prompt: Prompt, vdgd: VDGD) -> tuple[Prompt, list[Tensor]]:
        question = prompt.question
        asked = prompt.with_question(vdgd.description_prompt.replace("{question}", question))
        told = self.decode(inner, asked, vdgd.description_tokens, ends=True)
        text = self.processor.tokenizer.decode(told.tokens, skip_special_tokens=True).strip()
        grounded = f"The input image is described as follows: {text} {question}"
        return prompt.with_question(grounded), [raw.log_softmax(-1) for raw in told.raw]
