"""A vision-language model of transformers: the pass over prompts, and the pass over one token per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, DynamicCache

from decoding.encoder import Encoded, Encoder
from decoding.families import Family, context_of, family_of
from decoding.hf_engine import threads
from decoding.hf_engine.attention import AttentionTap
from decoding.hf_engine.cache import AlignedCache
from decoding.hf_engine.exits import ExitTap
from decoding.hf_engine.heads import HeadTap, Observer, Scales
from decoding.hf_engine.instructblip import InstructBlipBody
from decoding.hf_engine.linear import pack
from decoding.hf_engine.loading import load
from decoding.hf_engine.narrowing import NarrowTap, Pairs
from decoding.hf_engine.padding import before, behind, even, pad
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.vision import VisionTap
from decoding.processor import end_tokens, load_processor


@dataclass(frozen=True, slots=True)
class Read:
    """A row as far as the model has read it."""

    pairs: Pairs
    position: int  # of the token that comes next

    def own(self) -> Pairs:
        """Copied: a view would keep the whole pass that it was read in."""
        return [(keys.clone(), values.clone()) for keys, values in self.pairs]


@dataclass(frozen=True, slots=True)
class Prefilled(Read):
    """One prompt after its forward pass."""

    logits: Tensor  # [vocab], float32, after the last prompt token
    early: Mapping[str, Tensor] = field(default_factory=dict)  # owner -> [exits, vocab], float32


class Model:
    """Everything here runs in the engine's one worker thread; only `encoder` may run in another."""

    def __init__(self, settings: HFSettings) -> None:
        config = AutoConfig.from_pretrained(settings.model)
        self.family = family_of(config)
        self.context: int = context_of(config)
        self.encoder = Encoder(load_processor(settings.model, self.family), self.context, self.family)
        self.network = load(settings)
        self.body = body_of(self.network)
        self.decoder = at(self.network, self.family.decoder)
        self.head = self.network.get_output_embeddings()
        pack(self.decoder, self.head)
        self.step_threads = threads.for_steps(self.decoder.layers)
        text = self.decoder.config
        self.tap = HeadTap(
            [at(layer, self.family.head_output) for layer in self.decoder.layers], text.num_attention_heads
        )
        self.attention = AttentionTap(self.decoder)
        self.exits = ExitTap(self.decoder, self._logits)
        self.narrowing = NarrowTap(self.decoder) if self.family.narrows else None
        self.vision = vision_tap(self.network, self.family)
        self.window: int | None = getattr(text, "sliding_window", None)
        self.layer_types: frozenset[str] = frozenset(getattr(text, "layer_types", None) or ())
        embedding = self.network.get_input_embeddings().weight
        self.device: torch.device = embedding.device
        self.dtype: torch.dtype = embedding.dtype
        self.picture_token: int = self.network.config.image_token_id  # stands in the ids for each token of a picture
        self.tied: bool = self.head.weight is embedding
        self.vocab: int = self.head.weight.shape[0]
        self.eos = torch.tensor(
            end_tokens(self.network.generation_config, self.encoder.tokenizer), dtype=torch.long, device=self.device
        )

    @property
    def layers(self) -> int:
        return self.tap.layers

    def new_cache(self) -> AlignedCache:
        return AlignedCache(self.layers)

    def prefill(self, prompts: Sequence[Encoded], scales: Scales | None = None) -> list[Prefilled]:
        """`scales` act on the head outputs at every position."""
        return self._prefill(prompts, self.tap.scaled_by(scales))

    def observe(self, prompts: Sequence[Encoded], observer: Observer) -> list[Prefilled]:
        """A pass over prompts whose head outputs go through `observer`, layer by layer."""
        return self._prefill(prompts, self.tap.observed_by(observer))

    def decode(self, tokens: Tensor, positions: Sequence[int], cache: AlignedCache, scales: Scales | None) -> Tensor:
        """One token per row: [rows] -> [rows, vocab], float32."""
        cache.make_room()
        at_position = torch.tensor(positions, device=self.device)[:, None]
        with self.tap.scaled_by(scales):
            hidden = self.decoder(
                input_ids=tokens[:, None],
                position_ids=at_position.expand(3, -1, -1) if self._has_mrope else at_position,
                attention_mask=self._mask(cache),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        cache.advance()
        return self._logits(hidden[:, -1])

    def extend(self, caches: Sequence[Read], tokens: Sequence[Sequence[int]]) -> list[Prefilled]:
        """Rows go on from their caches, each by one token or several, in one pass."""
        past = [cache.pairs[0][0].shape[1] for cache in caches]
        lengths = [len(row) for row in tokens]
        cache = DynamicCache()
        for layer in range(self.layers):
            keys, values = zip(*(cached.pairs[layer] for cached in caches), strict=True)
            cache.update(before(keys), before(values), layer)
        ids = pad([torch.tensor(row, device=self.device) for row in tokens])
        offsets = torch.arange(ids.shape[1], device=self.device)
        at_position = torch.tensor([cached.position for cached in caches], device=self.device)[:, None] + offsets
        hidden = self.decoder(
            input_ids=ids,
            position_ids=at_position.expand(3, -1, -1) if self._has_mrope else at_position,
            attention_mask=self._masks(lambda window: behind(past, ids.shape[1], window, self.dtype).to(self.device)),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = self._logits(hidden[torch.arange(len(caches)), torch.tensor(lengths) - 1])
        first = max(past)
        return [
            Prefilled(
                [
                    (
                        layer.keys[row, :, first - past[row] : first + n],
                        layer.values[row, :, first - past[row] : first + n],
                    )
                    for layer in cache.layers
                ],
                caches[row].position + n,
                logits[row],
            )
            for row, n in enumerate(lengths)
        ]

    def _prefill(self, prompts: Sequence[Encoded], tapped: AbstractContextManager[None]) -> list[Prefilled]:
        lengths = [len(prompt) for prompt in prompts]
        batch = self._collate(prompts)
        positions, nexts = self._positions(batch, lengths)
        cache = DynamicCache()
        with tapped:
            hidden = self.body(**batch, **positions, past_key_values=cache, use_cache=True).last_hidden_state
        dropped = batch["input_ids"].shape[1] - hidden.shape[1]  # of one prompt alone, by `narrowing`
        logits = self._logits(hidden[torch.arange(len(prompts)), torch.tensor(lengths) - dropped - 1])
        return [
            Prefilled(
                [(layer.keys[row, :, :n], layer.values[row, :, :n]) for layer in cache.layers], nexts[row], logits[row]
            )
            for row, n in enumerate(lengths)
        ]

    def _logits(self, hidden: Tensor) -> Tensor:
        """Where the ids are: a model that is spread over several GPUs ends on another one than it begins."""
        return self.head(hidden).to(self.device, torch.float32)  # type: ignore[no-any-return]

    def _collate(self, prompts: Sequence[Encoded]) -> dict[str, Tensor]:
        """Right-padded: a causal row never sees what comes after it."""
        ids = [prompt.ids for prompt in prompts]
        batch = {"input_ids": pad(ids)}
        if len({len(row) for row in ids}) > 1:
            batch["attention_mask"] = pad([torch.ones_like(row) for row in ids])
        names = dict.fromkeys(name for prompt in prompts for name in prompt.extras)
        for name in names:
            if name in self.family.per_token:
                blank = [torch.zeros_like(row) for row in ids]
                batch[name] = pad(
                    [p.extras[name][0] if name in p.extras else b for p, b in zip(prompts, blank, strict=True)]
                )
            else:
                parts = [p.extras[name] for p in prompts if name in p.extras]
                parts = even(parts) if name in self.family.ragged else parts
                batch[name] = torch.cat(parts, self.family.picture_axis)
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }

    @property
    def _has_mrope(self) -> bool:
        return hasattr(self.body, "get_rope_index")

    def _positions(self, batch: dict[str, Tensor], lengths: list[int]) -> tuple[dict[str, Tensor], list[int]]:
        """What to tell the model of positions, and each prompt's next one."""
        if not self._has_mrope:
            return {}, lengths
        known = {name: batch[name] for name in ("image_grid_thw", "attention_mask") if name in batch}
        kinds = batch.get("mm_token_type_ids", torch.zeros_like(batch["input_ids"]))
        positions, deltas = self.body.get_rope_index(batch["input_ids"], kinds, **known)
        nexts = [length + int(delta) for length, delta in zip(lengths, deltas.flatten().tolist(), strict=True)]
        return {"position_ids": positions}, nexts

    def _mask(self, cache: AlignedCache) -> Any:
        return self._masks(lambda window: cache.mask(self.dtype, self.device, window))

    def _masks(self, made: Callable[[int | None], Tensor | None]) -> Any:
        """As the decoder takes them: one, or one for each type of layer. `made` knows the mask for a window."""
        if self.window is not None and not self.layer_types:
            return made(self.window)
        if "sliding_attention" not in self.layer_types:
            return made(None)
        return {"full_attention": made(None), "sliding_attention": made(self.window)}


def body_of(network: Any) -> Any:
    """Pictures and ids in, last hidden states out."""
    return InstructBlipBody(network) if network.config.model_type == "instructblip" else network.model


def at(module: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), module)


def vision_tap(network: Any, family: Family) -> VisionTap | None:
    """None where the tower has no class token, or the language model sees it."""
    if family.tower is None or network.config.vision_feature_select_strategy != "default":
        return None
    tower = at(network, family.tower)
    return VisionTap(tower) if hasattr(tower.embeddings, "class_embedding") else None
