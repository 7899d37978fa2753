"""A vision-language model of transformers: prefill of prompts, and decoding of one or more tokens per row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from decoding.hf_engine.cpu.packed_linear import pack_linears
from decoding.hf_engine.cpu.step_threads import choose_step_threads
from decoding.hf_engine.kv_cache.aligned_cache import AlignedCache, KeyValues, KVState
from decoding.hf_engine.model.network import get_base_model, load_network
from decoding.hf_engine.model.token_tree import TokenTree, build_tree_mask
from decoding.hf_engine.settings import DEFAULT_CONTEXTS, HFSettings
from decoding.hf_engine.taps.attention import AttentionTap
from decoding.hf_engine.taps.early_exit import EarlyExitTap
from decoding.hf_engine.taps.head import HeadObserver, HeadTap, LayerScales
from decoding.hf_engine.taps.steering import SteeringTap
from decoding.hf_engine.taps.token_pruning import TokenPruningTap
from decoding.hf_engine.taps.vision_attention import VisionAttentionTap
from decoding.multimodal.config import load_config
from decoding.multimodal.model_families import ModelFamily, get_family, get_max_model_len
from decoding.multimodal.processor import get_eos_token_ids, load_processor
from decoding.outputs import PromptScores
from decoding.pipeline.attention_statistics import load_attention_statistics
from decoding.pipeline.composition import copy_numbers
from decoding.text.chat_template import use_chat_template
from decoding.text.prompt_encoder import ModelInputs, PromptEncoder
from decoding.text.prompt_logprobs import join_scores, score_tokens

SCORED_TOKENS = 128  # tokens of a prompt whose logits exist at a time
GPU_SHARE = 0.8  # of the memory that the weights leave; passes need the rest


@dataclass(frozen=True, slots=True)
class PrefillOutput(KVState):
    """One row after a forward pass.

    Attributes:
        logits: [vocab], float32, after the last token.
        early_logits: Strategy name -> [exits, vocab], float32.
    """

    logits: Tensor
    early_logits: Mapping[str, Tensor] = field(default_factory=dict)


class Model:
    """A model with its processor and taps. Only `encoder` may run outside of the engine's worker thread."""

    def __init__(self, settings: HFSettings) -> None:
        config = load_config(settings.model)
        self.family = get_family(config)
        self.max_model_len: int = get_max_model_len(config)
        self.encoder = PromptEncoder(load_processor(settings.model, self.family), self.max_model_len, self.family)
        use_chat_template(self.encoder, settings.chat_template)
        self.network = load_network(settings)
        self.base_model = get_base_model(self.network)
        self.decoder = getattr_path(self.network, self.family.decoder_path)
        self.head = self.network.get_output_embeddings()
        pack_linears(self.decoder, self.head)
        self.step_threads = choose_step_threads(self.decoder.layers)
        text_config = self.decoder.config
        embedding = self.network.get_input_embeddings().weight
        self.head_tap = HeadTap(
            [getattr_path(layer, self.family.output_projection_path) for layer in self.decoder.layers],
            text_config.num_attention_heads,
        )
        self.attention_tap = AttentionTap(self.decoder)
        self.attention_statistics = load_attention_statistics(settings.attention_statistics, config, embedding.device)
        self.early_exit_tap = EarlyExitTap(self.decoder, self._compute_logits)
        self.steering_tap = SteeringTap(self.decoder, self.family)
        self.token_pruning_tap = TokenPruningTap(self.decoder) if self.family.supports_token_pruning else None
        self.vision_attention_tap = build_vision_attention_tap(self.network, self.family)
        self.sliding_window: int | None = getattr(text_config, "sliding_window", None)
        self.layer_types: frozenset[str] = frozenset(getattr(text_config, "layer_types", None) or ())
        self.device: torch.device = embedding.device
        self.dtype: torch.dtype = embedding.dtype
        self.image_token_id: int = self.network.config.image_token_id
        self.has_tied_embeddings: bool = self.head.weight is embedding
        self.vocab_size: int = self.head.weight.shape[0]
        self.eos_token_ids = tuple(get_eos_token_ids(self.network.generation_config, self.encoder.tokenizer))
        self.eos_token_ids_on_device = copy_numbers(self.eos_token_ids, torch.long, self.device)  # [n]

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return self.head_tap.num_layers

    def create_cache(self, max_slots: int = sys.maxsize) -> AlignedCache:
        """Build an empty KV cache for `decode`. `max_slots` bounds its slots, padding included."""
        return AlignedCache(self.num_layers, max_slots)

    def count_cache_slots(self, cache_bytes: int | None) -> int:
        """Count the slots of a KV cache. Each holds the keys and values of one token.

        Args:
            cache_bytes: Size of the cache. None: `DEFAULT_CONTEXTS`, but at most `GPU_SHARE` of a GPU's free memory.

        Returns:
            The number of slots.
        """
        with torch.inference_mode():
            (output,) = self.prefill([ModelInputs(torch.zeros(1, dtype=torch.long), {})])
        default = DEFAULT_CONTEXTS * self.max_model_len
        if cache_bytes is None and self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return min(default, int(GPU_SHARE * free) // output.nbytes)
        return default if cache_bytes is None else cache_bytes // output.nbytes

    def prefill(self, prompts: Sequence[ModelInputs], scales: LayerScales | None = None) -> list[PrefillOutput]:
        """Run prompts in one pass. `scales` act on the head outputs at every position."""
        return self._prefill(prompts, self.head_tap.scale(scales))

    def prefill_observed(self, prompts: Sequence[ModelInputs], observer: HeadObserver) -> list[PrefillOutput]:
        """Run prompts in one pass whose head outputs go through `observer`, layer by layer."""
        return self._prefill(prompts, self.head_tap.observe(observer))

    def decode(
        self, tokens: Tensor, positions: Sequence[int], cache: AlignedCache, scales: LayerScales | None
    ) -> Tensor:
        """Run one token per row.

        Args:
            tokens: [rows] token ids.
            positions: Position of each token.
            cache: KV cache, with as many rows.
            scales: Scales of the head outputs.

        Returns:
            [rows, vocab] logits, float32.
        """
        cache.reserve_column()
        position_ids = copy_numbers(positions, torch.long, self.device)[:, None]
        with self.head_tap.scale(scales):
            hidden = self.decoder(
                input_ids=tokens[:, None],
                position_ids=position_ids.expand(3, -1, -1) if self._has_mrope else position_ids,
                attention_mask=self._build_masks(lambda window: cache.build_mask(self.dtype, self.device, window)),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        cache.advance()
        return self._compute_logits(hidden[:, -1])

    def extend(
        self, states: Sequence[KVState], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[PrefillOutput]]:
        """Continue KV states by one or more tokens, in one pass.

        Args:
            states: One for each row of the pass, with keys and values of each layer, [kv heads, length, head_dim].
            continuations: For each state the token ids of its continuations. Each state has at least one continuation,
                and each continuation at least one token.

        Returns:
            For each state the outputs of its continuations, in their order. The logits of an output, [vocab] float32,
            are those after the last token of its continuation. Its keys and values are those of the state and of the
            continuation, [kv heads, length + tokens of the continuation, head_dim].

        Raises:
            ValueError: The number of states differs from that of their lists of continuations.
        """  # noqa: DOC502 - `zip` raises it
        past, trees = [state.length for state in states], [TokenTree.build(each) for each in continuations]
        cache = DynamicCache()
        for layer in range(self.num_layers):
            keys, values = zip(*(state.key_values[layer] for state in states), strict=True)
            cache.update(pad_left(keys), pad_left(values), layer)
        ids = pad_right([torch.tensor(tree.tokens, device=self.device) for tree in trees])
        positions = [torch.tensor(tree.depths) + state.next_position for state, tree in zip(states, trees, strict=True)]
        position_ids = pad_right(positions).to(self.device)
        hidden = self.decoder(
            input_ids=ids,
            position_ids=position_ids.expand(3, -1, -1) if self._has_mrope else position_ids,
            attention_mask=self._build_masks(
                lambda window: build_tree_mask(past, trees, window, self.dtype).to(self.device)
            ),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        ends = [(row, path[-1]) for row, tree in enumerate(trees) for path in tree.paths]
        rows, last = torch.tensor(ends).unbind(1)
        logits = iter(self._compute_logits(hidden[rows, last]))
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        longest = max(past)
        outputs: list[list[PrefillOutput]] = []
        for row, (state, tree) in enumerate(zip(states, trees, strict=True)):
            columns = slice(longest - past[row], longest + len(tree.tokens))
            of_row: KeyValues = [(keys[row, :, columns], values[row, :, columns]) for keys, values in layers]
            outputs.append(
                [
                    PrefillOutput(select_path(of_row, past[row], path), state.next_position + len(path), next(logits))
                    for path in tree.paths
                ]
            )
        return outputs

    def score_prompt(self, prompt: ModelInputs, count: int) -> PromptScores:
        """Run a prompt alone, and score its tokens.

        Args:
            prompt: The prompt.
            count: Likeliest tokens at each place.

        Returns:
            The scores.
        """
        batch = self._collate([prompt])
        position_kwargs, _ = self._build_positions(batch, [len(prompt)])
        hidden = self.base_model(**batch, **position_kwargs, use_cache=False).last_hidden_state[0]
        targets = prompt.ids[1:].to(self.device)
        parts = [
            score_tokens(self._compute_logits(hidden[start : start + len(ids)]), ids, count)
            for start, ids in zip(
                range(0, len(hidden), SCORED_TOKENS), torch.split(targets, SCORED_TOKENS), strict=False
            )
        ]
        return join_scores(parts)

    def _prefill(self, prompts: Sequence[ModelInputs], tap: AbstractContextManager[None]) -> list[PrefillOutput]:
        lengths = [len(prompt) for prompt in prompts]
        batch = self._collate(prompts)
        position_kwargs, next_positions = self._build_positions(batch, lengths)
        cache = DynamicCache()
        with tap:
            hidden = self.base_model(
                **batch, **position_kwargs, past_key_values=cache, use_cache=True
            ).last_hidden_state
        pruned = batch["input_ids"].shape[1] - hidden.shape[1]  # tokens dropped by `token_pruning_tap`; one prompt then
        logits = self._compute_logits(hidden[torch.arange(len(prompts)), torch.tensor(lengths) - pruned - 1])
        return [
            PrefillOutput(
                [(layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cache.layers],
                next_positions[row],
                logits[row],
            )
            for row, length in enumerate(lengths)
        ]

    def _compute_logits(self, hidden: Tensor) -> Tensor:
        """Compute [n, vocab] logits on the first device: a model that is split over several GPUs ends on another."""
        return self.head(hidden).to(self.device, torch.float32)  # type: ignore[no-any-return]

    def _collate(self, prompts: Sequence[ModelInputs]) -> dict[str, Tensor]:
        """Combine prompts into one batch, padded on the right: a causal row never sees what follows it."""
        ids = [prompt.ids for prompt in prompts]
        batch = {"input_ids": pad_right(ids)}
        if len({len(row) for row in ids}) > 1:
            batch["attention_mask"] = pad_right([torch.ones_like(row) for row in ids])
        names = dict.fromkeys(name for prompt in prompts for name in prompt.extras)
        for name in names:
            if name in self.family.per_token:
                rows = [p.extras[name][0] if name in p.extras else torch.zeros_like(p.ids) for p in prompts]
                batch[name] = pad_right(rows)
            else:
                parts = [p.extras[name] for p in prompts if name in p.extras]
                parts = pad_to_common_shape(parts, self.family.image_axis) if name in self.family.padded else parts
                batch[name] = torch.cat(parts, self.family.image_axis)
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }

    @property
    def _has_mrope(self) -> bool:
        return hasattr(self.base_model, "get_rope_index")

    def _build_positions(self, batch: dict[str, Tensor], lengths: list[int]) -> tuple[dict[str, Tensor], list[int]]:
        """Build the model's position arguments, and compute the next position of each prompt."""
        if not self._has_mrope:
            return {}, lengths
        kwargs = {name: batch[name] for name in ("image_grid_thw", "attention_mask") if name in batch}
        token_types = batch.get("mm_token_type_ids", torch.zeros_like(batch["input_ids"]))
        position_ids, deltas = self.base_model.get_rope_index(batch["input_ids"], token_types, **kwargs)
        next_positions = [length + int(delta) for length, delta in zip(lengths, deltas.flatten().tolist(), strict=True)]
        return {"position_ids": position_ids}, next_positions

    def _build_masks(self, build_mask: Callable[[int | None], Tensor | None]) -> Any:
        """Build the decoder's mask, or one for each type of layer. `build_mask` takes the length of a window."""
        if self.sliding_window is not None and not self.layer_types:
            return build_mask(self.sliding_window)
        if "sliding_attention" not in self.layer_types:
            return build_mask(None)
        return {"full_attention": build_mask(None), "sliding_attention": build_mask(self.sliding_window)}


def getattr_path(module: Any, path: str) -> Any:
    """Follow a dotted attribute path."""
    return reduce(getattr, path.split("."), module)


def build_vision_attention_tap(network: Any, family: ModelFamily) -> VisionAttentionTap | None:
    """Build the tap; None if the vision tower has no class token, or the language model sees it."""
    if family.vision_tower_path is None or network.config.vision_feature_select_strategy != "default":
        return None
    tower = getattr_path(network, family.vision_tower_path)
    return VisionAttentionTap(tower) if hasattr(tower.embeddings, "class_embedding") else None


def pad_right(rows: Sequence[Tensor]) -> Tensor:
    """Pad [length] rows with 0 at their ends to [rows, longest]."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def pad_left(states: Sequence[Tensor]) -> Tensor:
    """Pad keys or values, [kv heads, length, head_dim] each, with 0 before their first column, and stack them."""
    longest = max(row.shape[1] for row in states)
    return torch.stack([nn.functional.pad(row, (0, 0, longest - row.shape[1], 0)) for row in states])


def select_path(key_values: KeyValues, past: int, path: Sequence[int]) -> KeyValues:
    """Select the keys and values of a state of `past` tokens and of one path through the tree of tokens after it."""
    length = past + len(path)
    if path[-1] == len(path) - 1:  # the first path
        return [(keys[:, :length], values[:, :length]) for keys, values in key_values]
    columns = torch.tensor([*range(past), *(past + number for number in path)])
    # A model may be split over several devices.
    on_device = {device: columns.to(device) for device in {keys.device for keys, _ in key_values}}
    return [(keys[:, on_device[keys.device]], values[:, on_device[keys.device]]) for keys, values in key_values]


def pad_to_common_shape(parts: Sequence[Tensor], axis: int = 0) -> list[Tensor]:
    """Pad tensors with 0 at the ends of all dimensions but one, to one shape.

    Args:
        parts: Tensors with the same number of dimensions. Each has its own sizes.
        axis: The dimension that stays as it is.

    Returns:
        The tensors. Each has its own size of `axis`. Every other size is the largest among the tensors.
    """
    target = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    padded: list[Tensor] = []
    for part in parts:
        missing = [wants - has for has, wants in zip(part.shape, target, strict=True)]
        missing[axis] = 0
        padded.append(nn.functional.pad(part, [n for more in reversed(missing) for n in (0, more)]))
    return padded
