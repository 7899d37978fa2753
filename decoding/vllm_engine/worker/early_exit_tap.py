"""Tap on the decoder's layers: hidden states of the newest tokens, and their logits through the model's head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.early_exits import EarlyLogits, ExitsByRow, compute_early_logits, list_exits
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.attention_layers import has_attention
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo

# `forward` of the layer classes whose two arguments add up to the hidden state. In other models the first argument
# alone may be the hidden state.
TAPPED_LAYERS = frozenset(
    {
        "vllm.model_executor.models.llama.LlamaDecoderLayer.forward",
        "vllm.model_executor.models.mistral.MistralDecoderLayer.forward",
        "vllm.model_executor.models.qwen2.Qwen2DecoderLayer.forward",
        "vllm.model_executor.models.qwen3.Qwen3DecoderLayer.forward",
    }
)


class HiddenStateBuffers:
    """Hidden states of the newest tokens, in buffers with fixed shapes and addresses.

    Compiled code and CUDA graphs use the buffers in place. Rows that no strategy reads, and all rows between steps,
    refer to the first token, which every pass has.

    Attributes:
        states: [layers, max_rows, width] input of each layer.
        last_tokens: [max_rows] number of each row's newest token among the tokens of the step.
    """

    def __init__(self, num_layers: int, max_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.states = torch.zeros(num_layers, max_rows, width, dtype=dtype, device=device)
        self.last_tokens = torch.zeros(max_rows, dtype=torch.long, device=device)


class TappedLayer(nn.Module):
    """A layer of the decoder that copies the newest tokens of its input into a buffer."""

    states: Tensor
    last_tokens: Tensor

    def __init__(self, layer: nn.Module, number: int, buffers: HiddenStateBuffers, tap: GangEarlyExitTap) -> None:
        super().__init__()
        self.layer = layer
        self.tap = tap
        self.register_buffer("states", buffers.states[number], persistent=False)
        self.register_buffer("last_tokens", buffers.last_tokens, persistent=False)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any) -> Any:
        """Copy the newest tokens, and run the layer.

        Args:
            positions: Positions of the tokens.
            hidden_states: [tokens, width].
            residual: [tokens, width] that the layer adds to `hidden_states`. None in the first layer.
            kwargs: Other arguments of the layer.

        Returns:
            Whatever the layer returns.
        """
        # Compiled code cannot branch on Python state later, so that it always copies.
        if torch.compiler.is_compiling() or not self.tap.is_idle:
            newest = hidden_states.index_select(0, self.last_tokens)
            self.states.copy_(newest if residual is None else newest + residual.index_select(0, self.last_tokens))
        return self.layer(positions, hidden_states, residual, **kwargs)


class GangEarlyExitTap:
    """The early exits of one model runner, on its loaded and not yet compiled model.

    Args:
        decoder: The module with `layers`, `norm` and `embed_tokens`. Its layers are wrapped.
        compute_logits: The model's head, from [n, width] to [n, vocab].
        has_tied_embeddings: Whether the head is the input embedding.
        max_rows: Most rows in a step.
        dtype: Type of the hidden states.
        device: Device of the model.
    """

    def __init__(
        self,
        decoder: Any,
        compute_logits: Callable[[Tensor], Tensor],
        has_tied_embeddings: bool,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_layers = len(decoder.layers)
        self.has_tied_embeddings = has_tied_embeddings
        self.buffers = HiddenStateBuffers(self.num_layers, max_rows, decoder.norm.weight.shape[0], dtype, device)
        self._norm: Callable[[Tensor], Tensor] = decoder.norm
        self._compute_logits = compute_logits
        self._is_capturing = False
        self._layout: tuple[object, ...] = ()
        self._last_tokens: Tensor | None = None  # [rows] of the step; None where no strategy reads a row
        self.layers = [TappedLayer(layer, number, self.buffers, self) for number, layer in enumerate(decoder.layers)]
        for number, layer in enumerate(self.layers):
            decoder.layers[number] = layer

    @classmethod
    def from_runner(cls, runner: Any) -> GangEarlyExitTap:
        """Tap the model of a model runner.

        Args:
            runner: vLLM's model runner.

        Returns:
            The tap. `ValueError` gives the reason if the model cannot be tapped.
        """
        decoder, head = find_decoder(runner.model)
        return cls(
            decoder,
            runner.model.compute_logits,
            head.weight.data_ptr() == decoder.embed_tokens.weight.data_ptr(),
            runner.vllm_config.scheduler_config.max_num_seqs,
            runner.model_config.dtype,
            runner.device,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no strategy reads a hidden state of this step."""
        return not self._is_capturing

    def before_forward(self, rows: StepRows, _: TokenInfo) -> None:
        """Select the newest tokens of the rows that strategies read.

        Args:
            rows: Rows of the step.
        """
        layout = (rows.layout, rows.token_starts.tobytes())
        if layout != self._layout:
            self._last_tokens = self._find_last_tokens(rows)
            self._layout = layout
        if self._last_tokens is not None:
            self.buffers.last_tokens[: len(self._last_tokens)] = self._last_tokens
            self._is_capturing = True

    def after_forward(self, _: StepRows, __: TokenInfo) -> None:
        """Reset the rows. The next step may have fewer tokens, and calls no method if it has no gang."""
        if self._is_capturing:
            self.buffers.last_tokens.zero_()
            self._is_capturing = False

    def reset(self) -> None:
        """Drop the step, so that the next one selects its tokens anew."""
        self.buffers.last_tokens.zero_()
        self._is_capturing, self._layout, self._last_tokens = False, (), None

    def compute_logits(self, exits: ExitsByRow) -> EarlyLogits:
        """Compute the early logits of the last forward pass.

        Args:
            exits: Early exits by row of the step, which must be main rows that sample a token.

        Returns:
            Row -> strategy -> [exits, vocab], float32.
        """
        rows, layers = zip(*list_exits(exits), strict=True)
        rows_index, layers_index = (
            copy_numbers(numbers, torch.long, self.buffers.states.device) for numbers in (rows, layers)
        )
        hidden = self.buffers.states[layers_index, rows_index]
        return compute_early_logits(exits, hidden, self._norm, lambda states: self._compute_logits(states).float())

    def _find_last_tokens(self, rows: StepRows) -> Tensor | None:
        """Return the [rows] newest tokens of the step, or None. Rows that no strategy reads have 0."""
        is_read = np.zeros(len(rows.request_ids), dtype=bool)
        for row, member in rows.members.items():
            is_read[row] = rows.is_sampling[row] and reads_early_exits(member)
        if not is_read.any():
            return None
        last_tokens = np.where(is_read, rows.token_starts[1:] - 1, 0)
        return copy_numbers(last_tokens.tolist(), torch.long, self.buffers.last_tokens.device)


def reads_early_exits(member: Member) -> bool:
    """Return whether a strategy of the member selects early exits. Branches have no stack."""
    return any("early_exit_layers" in spec.list_hooks() for spec in member.stack)


def find_decoder(model: nn.Module) -> tuple[Any, Any]:
    """Find the language model's decoder and head.

    Args:
        model: Loaded model.

    Returns:
        The module with the layers, their norm and the input embedding, and the module of the head.

    Raises:
        ValueError: The model has no such modules, or a layer whose class is not in `TAPPED_LAYERS`.
    """
    decoders: list[Any] = [
        module
        for module in model.modules()
        if isinstance(layers := getattr(module, "layers", None), nn.ModuleList)
        and any(map(has_attention, layers.modules()))
    ]
    if len(decoders) != 1:
        raise ValueError(f"the model has {len(decoders)} decoders")
    (decoder,) = decoders
    for name in ("norm", "embed_tokens"):
        if not isinstance(getattr(getattr(decoder, name, None), "weight", None), Tensor):
            raise ValueError(f"the decoder has no `{name}`")
    for layer in decoder.layers:
        forward = type(layer).forward
        if f"{forward.__module__}.{forward.__qualname__}" not in TAPPED_LAYERS:
            raise ValueError(f"the layer class {type(layer).__name__} is not in `TAPPED_LAYERS`")
    heads = [module.lm_head for module in model.modules() if isinstance(getattr(module, "lm_head", None), nn.Module)]
    if len({id(head) for head in heads}) != 1 or not isinstance(getattr(heads[0], "weight", None), Tensor):
        raise ValueError("the model has no head with a weight")
    return decoder, heads[0]
