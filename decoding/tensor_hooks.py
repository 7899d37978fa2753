"""The tensor side of a strategy: pure functions that run next to the model, and the data that they receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Tensors = Mapping[str, Tensor]

# Marks of parameters, next to their `Field`. Requests that differ in marked parameters only share hook calls.
PER_ROW = (
    "per row"  # a number that only `logits` and `needs_branches` read. Where rows differ, it is a tensor [..., 1].
)
TEXT_SIDE = "text side"  # read by `prepare`, `run` and `stream` only

TENSOR_HOOKS = (
    "update_state",
    "logits",
    "needs_branches",
    "head_scales",
    "edit_attention_scores",
    "gate_heads",
    "keep_image_tokens",
    "early_exit_layers",
    "steer",
)
ATTENTION_HOOKS = frozenset({"edit_attention_scores", "gate_heads"})  # act on the attention of single tokens


@dataclass(frozen=True, slots=True)
class Step:
    """Input of a `logits` hook: one decoding step. `...` is nothing for one request, or the batch dimension."""

    scores: Tensor  # [..., vocab] after the strategies inside this one
    raw: Tensor  # [..., vocab] logits of the main row
    branches: Mapping[str, Tensor]  # name -> [..., vocab], without branches that this step does not need
    state: Tensors  # result of this strategy's `update_state`, each [..., *shape]
    position: Tensor  # [..., 1] tokens generated so far
    early_logits: Tensor | None = None  # [..., exits, vocab] of the main row, after the layers of `early_exit_layers`


@dataclass(frozen=True, slots=True)
class EarlyExits:
    """Layers after which the model's head is applied to the hidden state."""

    layers: tuple[int, ...]  # numbers of layers passed; 0 is after the embeddings
    normed: bool = True  # whether the final norm comes first, as after the last layer


@dataclass(frozen=True, slots=True)
class AttentionKeys:
    """Keys that the newest token of each row attends to, in one layer. Keys after the token are masked later."""

    image_token_index: Tensor  # [..., keys] index among the image tokens of the prompt; -1 for text
    layer: int
    layers: int
    generated: Tensor | None = None  # [..., keys] true for tokens of the answer, the newest included; None: none is
    visible: Tensor | None = None  # [..., keys] true for keys that the mask leaves; None: all are
    # Name -> [layers, heads] statistics of the model, with `reads_attention_statistics`.
    statistics: Tensors = field(default_factory=dict)

    @property
    def is_image(self) -> Tensor:
        """[..., keys] true for image tokens."""
        return self.image_token_index >= 0

    @property
    def is_generated(self) -> Tensor:
        """[..., keys] true for tokens of the answer."""
        return torch.zeros_like(self.is_image) if self.generated is None else self.generated

    @property
    def is_visible(self) -> Tensor:
        """[..., keys] true for keys that the mask leaves."""
        return torch.ones_like(self.is_image) if self.visible is None else self.visible

    def select_rows(self, rows: slice) -> AttentionKeys:
        """Return the keys of some rows of a batch."""
        generated, visible = (None if each is None else each[rows] for each in (self.generated, self.visible))
        return replace(self, image_token_index=self.image_token_index[rows], generated=generated, visible=visible)


LayerPart = Literal["feed_forward", "attention", "layer"]


@dataclass(frozen=True, slots=True)
class SteeredLayers:
    """Places whose outputs `steer` edits.

    The output of `feed_forward` and `attention` is that which the layer adds to the residual stream. The output of
    `layer` is the residual stream after it.
    """

    layers: tuple[int, ...]  # from 0
    part: LayerPart = "layer"
    positions: Literal["all", "answer"] = "all"  # all tokens of prompt and answer, or the tokens of the answer alone

    @property
    def acts_on_prompt(self) -> bool:
        """Whether tokens of the prompt are edited."""
        return self.positions == "all"


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """A part of one layer, whose output `steer` receives."""

    part: LayerPart
    layer: int
    layers: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Input of `update_state`.

    A probe calls the hook once per layer and fills `heads`, `attention`, `vision_attention`, `hidden_states` and
    `attention_updates`, as far as its `capture` names them. A generation request with `updates_state` calls it once per
    token and fills `logits`.
    """

    heads: Tensors = field(default_factory=dict)  # prompt name -> [heads, head_dim] at the last position, one layer
    layer: int = 0
    layers: int = 0
    vision_attention: Tensors = field(default_factory=dict)  # prompt name -> [tower layers, images, heads, patches]
    attention: Tensors = field(default_factory=dict)  # prompt name -> [heads, image tokens], of the last token
    logits: Tensor | None = None  # [vocab] raw logits of one generated token
    hidden_states: Tensors = field(default_factory=dict)  # prompt name -> [width] after the layer, at the last position
    attention_updates: Tensors = field(default_factory=dict)  # prompt name -> [length, width] added by the attention


class TensorHooks(BaseModel):
    """Tensor hooks and the parameters that they read. Engines use a strategy through this class.

    Tensor hooks keep shape, dtype and device, do not modify their inputs, and keep -inf at -inf. `head_scales`,
    `edit_attention_scores` and `gate_heads` act on the main row only: `head_scales` at every position, prompt included;
    the other two on the query of the newest token, and with `edits_question` also on the prompt's after its last image.
    `steer` acts on the main row only, too, where `steered_layers` selects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]
    uncut: ClassVar[Mapping[str, Any]] = {}  # parameters with which `logits` rules no token out
    # Whether `edit_attention_scores` and `gate_heads` also act on the tokens of the prompt after its last image.
    edits_question: ClassVar[bool] = False
    # Whether these hooks read `AttentionKeys.statistics`, which the operator measures once for each model.
    reads_attention_statistics: ClassVar[bool] = False
    # Whether the state that `steer` receives also has "layer_input", [..., width]: the residual stream that enters the
    # layer of the place, for the same tokens.
    reads_layer_input: ClassVar[bool] = False

    def without_cut(self) -> Self:
        """Return this strategy with `uncut`, for the probabilities of claims.

        A cut rules out the less likely of Yes and No, although it decides nothing between them: any probability beyond
        the cut would become 0 or 1.
        """
        return self.model_copy(update=dict(self.uncut)) if self.uncut else self

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        """Fold activations into the state, which is empty at first.

        Args:
            state: Name -> tensor of any shape, as the last call returned it.
            activations: Activations of one layer or one token. `Activations` has their shapes.

        Returns:
            The new state. Its names and shapes must not change between calls.

        Raises:
            NotImplementedError: The strategy does not override the hook.
        """
        raise NotImplementedError(f"{self.name} does not define `update_state`")

    def logits(self, step: Step) -> Tensor:
        """Return the [..., vocab] scores of one step, called once per generated token."""
        return step.scores

    def needs_branches(self, raw: Tensor) -> Tensor:
        """Return [...] true where the step needs the strategy's branches, from the main row's [..., vocab] logits.

        A strategy with this hook has lazy branches, unless `has_lazy_branches` is false. Steps that do not need them do
        not run them, and `Step.branches` lacks them. Before the next step that needs them, they catch up on the skipped
        tokens in one pass. An engine may also run them in every step, so that the hook must not change the output.
        """
        return torch.ones(raw.shape[:-1], dtype=torch.bool, device=raw.device)

    def has_lazy_branches(self) -> bool:
        """Return whether the branches run only at steps for which `needs_branches` is true.

        Parameters may decide it. Branches that are not lazy have a row of the batch, without `needs_branches`.
        """
        return "needs_branches" in self.list_hooks()

    def head_scales(self, state: Tensors) -> Tensor | None:
        """Return [layers, heads] factors of the head outputs before the output projection, or None for all 1."""
        return None

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        """Edit the [..., heads, keys] scaled attention scores of the newest token, before mask and softmax.

        Args:
            scores: [..., heads, keys] scores. With `edits_question`, `...` may be tokens of one prompt.
            keys: The keys of the scores.
            state: Result of this strategy's `update_state`, each [..., *shape].

        Returns:
            [..., heads, keys] scores.
        """
        return scores

    def gate_heads(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor | None:
        """Return factors of the newest token's head outputs, from its scaled attention scores before mask and softmax.

        Args:
            scores: [..., heads, keys] scores, edited by the strategies inside this one, and not by its own edit.
            keys: The keys of the scores.
            state: Result of this strategy's `update_state`, each [..., *shape].

        Returns:
            [..., heads] factors of the outputs before the output projection, or None for all 1.
        """
        return None

    def keep_image_tokens(self, state: Tensors) -> Tensor | None:
        """Return [layers, image tokens] true where the strategy's branches keep a token, or None for everywhere.

        A token that one layer drops must be dropped by all later layers.
        """
        return None

    def early_exit_layers(self, layers: int, tied: bool) -> EarlyExits:
        """Select the layers of `Step.early_logits`.

        Args:
            layers: Number of layers of the model.
            tied: Whether the model's head is its input embedding.

        Returns:
            The layers, and whether the final norm applies.
        """
        return EarlyExits(())

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        """Edit the outputs of a part of a layer, token by token.

        Args:
            outputs: [..., width], where `...` may be tokens of one prompt.
            place: The part of the layer, one that `steered_layers` selects.
            state: Result of this strategy's `update_state`, or its vectors, each [..., *shape]. With
                `reads_layer_input`, also "layer_input", [..., width].

        Returns:
            [..., width] outputs. That of a token depends on no other token, so that caches and batches do not matter.
        """
        return outputs

    def steered_layers(self, layers: int) -> SteeredLayers:
        """Select the places on which `steer` acts, in a model of so many layers."""
        return SteeredLayers(tuple(range(layers)))

    def batch_key(self) -> tuple[type[TensorHooks], str]:
        """Return a key that is equal for strategies which share hook calls.

        The parameters are JSON because a list among them has no hash.
        """
        return type(self), self.model_dump_json(
            exclude=self.find_marked_fields(PER_ROW) | self.find_marked_fields(TEXT_SIDE)
        )

    @classmethod
    @cache
    def find_marked_fields(cls, mark: str) -> set[str]:
        """Return the names of the parameters with the mark `PER_ROW` or `TEXT_SIDE`."""
        return {name for name, parameter in cls.model_fields.items() if mark in parameter.metadata}

    @classmethod
    def acts_on_attention(cls) -> bool:
        """Return whether this class edits the attention of single tokens."""
        return bool(ATTENTION_HOOKS & cls.list_hooks())

    @classmethod
    @cache
    def list_hooks(cls) -> frozenset[str]:
        """List the tensor hooks that this class overrides. Their names are capabilities of an engine."""
        return frozenset(name for name in TENSOR_HOOKS if getattr(cls, name) is not getattr(TensorHooks, name))
