"""Random inputs of the tensor hooks, and parameter values at the ends of their bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import annotated_types
import torch
from pydantic import ValidationError
from torch import Tensor

from decoding.pipeline.dry_run import list_requests, run_program
from decoding.requests import GenerateRequest, ProbeRequest, VectorsRequest
from decoding.strategy import Activations, AttentionKeys, Step, Strategy, Tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODEL_DEPTHS = (1, 2, 3, 6, 8, 28, 32, 48)
VOCAB, LAYERS, HEADS, HEAD_DIM = 50, 8, 6, 4
WIDTH = HEADS * HEAD_DIM  # of hidden states
TOWER_LAYERS, TOWER_HEADS = 4, 2
IMAGE_TOKENS, KEYS = 16, 21  # tokens of an image, and all keys of a query
DESCRIPTION_TOKENS, PROMPT_TOKENS = 5, 7
# Heads attend to the answer less where they hallucinate, in all but one of six.
STATISTICS = {
    "hallucinated": torch.full((LAYERS, HEADS), 0.05),
    "real": torch.linspace(0.04, 0.14, HEADS).repeat(LAYERS, 1),
}


class Samples:
    """Inputs that fit the requests which a strategy makes of its engine.

    Args:
        strategy: The text side runs with its parameters. The hooks may be called with others.
    """

    def __init__(self, strategy: Strategy) -> None:
        effects, self.outcome = run_program(strategy)
        self.requests = list_requests(effects)
        branches = self.outcome.branches if isinstance(self.outcome, GenerateRequest) else {}
        self.branches = [name.removeprefix(f"{strategy.name}/") for name in branches]

    def fold_state(self, strategy: Strategy, seed: int = 0) -> Tensors:
        """Fold random activations into a state, as the last probe or description does, or draw vectors.

        Args:
            strategy: Strategy whose `update_state` is called.
            seed: Seed of the activations.

        Returns:
            Name -> tensor of any shape; empty for a strategy without state.
        """
        state: Tensors = {}
        for request in self.requests:
            if isinstance(request, VectorsRequest):
                state = {"vectors": torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(seed))}
            if isinstance(request, ProbeRequest) or (isinstance(request, GenerateRequest) and request.updates_state):
                state = {}
                for activations in draw_activations(request, seed):
                    state = strategy.update_state(state, activations)
        return state

    def step(self, strategy: Strategy, dtype: torch.dtype = torch.float32, seed: int = 0) -> Step:
        """Build a step of one row, with [vocab] logits.

        Some tokens are -inf in every row, others after an inner strategy or in the branches only. The likeliest token
        of the main row is possible everywhere.

        Returns:
            The step.
        """
        random = torch.Generator().manual_seed(seed)
        everywhere, inner, in_branches = slice(0, 5), slice(5, 10), slice(8, 12)

        def draw(*impossible: slice) -> Tensor:
            logits = (4 * torch.randn(VOCAB, generator=random)).to(dtype)
            for tokens in impossible:
                logits[tokens] = -torch.inf
            return logits

        raw = draw(everywhere)
        raw[20] = raw.max() + 1
        scores = raw.clone()
        scores[inner] = -torch.inf
        branches = {name: draw(everywhere, in_branches) for name in self.branches}
        early = [draw(everywhere, in_branches) for _ in strategy.early_exit_layers(LAYERS, False).layers]
        state = self.fold_state(strategy, seed)
        return Step(scores, raw, branches, state, torch.tensor([seed]), torch.stack(early) if early else None)


class RecordedBranches(dict[str, Tensor]):
    """Branches that record which of them are read."""

    def __init__(self, branches: Mapping[str, Tensor]) -> None:
        super().__init__(branches)
        self.names_read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.names_read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names_read.add(name)
        return super().get(name, default)

    def values(self) -> Any:
        self.names_read |= self.keys()
        return super().values()

    def items(self) -> Any:
        self.names_read |= self.keys()
        return super().items()


def draw_activations(request: GenerateRequest | ProbeRequest, seed: int) -> Iterator[Activations]:
    """Draw what an engine captures for a request, in the order of the calls of `update_state`.

    Yields:
        The activations of one layer, or of one generated token.
    """
    random = torch.Generator().manual_seed(seed)
    if isinstance(request, GenerateRequest):
        for _ in range(DESCRIPTION_TOKENS):
            yield Activations(logits=torch.randn(VOCAB, generator=random))
        return
    for layer in range(LAYERS):
        heads = {name: torch.randn(HEADS, HEAD_DIM, generator=random) for name in request.prompts}
        vision_attention, attention = {}, {}
        if "vision_attention" in request.capture:
            tower = (TOWER_LAYERS, 1, TOWER_HEADS, IMAGE_TOKENS)
            vision_attention = {name: torch.rand(tower, generator=random) for name in request.prompts}
        if "attention" in request.capture:
            drawn = {name: torch.rand(HEADS, IMAGE_TOKENS, generator=random) for name in request.prompts}
            attention = {name: scores.softmax(-1) for name, scores in drawn.items()}
        hidden_states = {}
        if "hidden_states" in request.capture:
            hidden_states = {name: torch.randn(WIDTH, generator=random) for name in request.prompts}
        updates = {}
        if "attention_updates" in request.capture:
            updates = {name: torch.randn(PROMPT_TOKENS, WIDTH, generator=random) for name in request.prompts}
        yield Activations(
            heads, layer, LAYERS, vision_attention, attention, hidden_states=hidden_states, attention_updates=updates
        )


def draw_attention(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, AttentionKeys]:
    """Draw the [heads, keys] attention scores of one row in the last layer, and its keys."""
    random = torch.Generator().manual_seed(seed)
    scores = (3 * torch.randn(HEADS, KEYS, generator=random)).to(dtype)
    after = KEYS - IMAGE_TOKENS - 2
    index = torch.tensor([-1, -1, *range(IMAGE_TOKENS), *[-1] * after])
    generated = torch.arange(KEYS) >= KEYS - after + 1
    return scores, AttentionKeys(index, LAYERS // 2, LAYERS, generated, draw_visible(seed), STATISTICS)


def draw_visible(seed: int) -> Tensor:
    """Draw the [keys] that a row sees. Some rows begin with padding."""
    return torch.arange(KEYS) >= seed % 2


def stack_keys(keys: Sequence[AttentionKeys]) -> AttentionKeys:
    """Stack the keys of rows, each [keys], of one layer."""
    index, generated, visible = (
        torch.stack([getattr(each, name) for each in keys])
        for name in ("image_token_index", "is_generated", "is_visible")
    )
    return AttentionKeys(index, keys[0].layer, keys[0].layers, generated, visible, keys[0].statistics)


def batch_steps(steps: Sequence[Step]) -> Step:
    """Stack steps of one row each into one step."""
    first = steps[0]
    early = [step.early_logits for step in steps if step.early_logits is not None]
    return Step(
        scores=torch.stack([step.scores for step in steps]),
        raw=torch.stack([step.raw for step in steps]),
        branches={name: torch.stack([step.branches[name] for step in steps]) for name in first.branches},
        state={name: torch.stack([step.state[name] for step in steps]) for name in first.state},
        position=torch.stack([step.position for step in steps]),
        early_logits=torch.stack(early) if early else None,
    )


def list_tensors(step: Step) -> list[Tensor]:
    """List all tensors of a step."""
    early = [] if step.early_logits is None else [step.early_logits]
    return [step.scores, step.raw, step.position, *step.branches.values(), *step.state.values(), *early]


def collect_parameter_sets(strategy_class: type[Strategy]) -> dict[str, Mapping[str, Any]]:
    """Collect parameters to try, by a name: the defaults, the neutral ones, and those at the ends of their bounds."""
    sets: dict[str, Mapping[str, Any]] = {"default": {}}
    if strategy_class.neutral is not None:
        sets["neutral"] = strategy_class.neutral
    sets |= {
        "largest": choose_extreme_parameters(strategy_class, largest=True),
        "smallest": choose_extreme_parameters(strategy_class, largest=False),
    }
    return {name: values for name, values in sets.items() if is_valid(strategy_class, values)}


def choose_extreme_parameters(strategy_class: type[Strategy], *, largest: bool) -> dict[str, Any]:
    """Set every number to the largest or smallest valid value, or next to it where a bound is exclusive."""
    values: dict[str, Any] = {}
    for name, info in strategy_class.model_fields.items():
        if info.annotation in (int, float) and len(bounds := get_numeric_bounds(strategy_class, name)) == 2:
            end = bounds["most"] if largest else bounds["least"]
            step = 1 if info.annotation is int else 1e-3
            values[name] = end if is_valid(strategy_class, {name: end}) else end + (-step if largest else step)
    return values


def get_numeric_bounds(strategy_class: type[Strategy], name: str) -> dict[str, float]:
    """Return the bounds of a numeric parameter, as "least" and "most"."""
    bounds: dict[str, Any] = {}
    for bound in strategy_class.model_fields[name].metadata:
        match bound:
            case annotated_types.Ge(ge=value) | annotated_types.Gt(gt=value):
                bounds["least"] = value
            case annotated_types.Le(le=value) | annotated_types.Lt(lt=value):
                bounds["most"] = value
    return bounds


def is_valid(strategy_class: type[Strategy], parameters: Mapping[str, Any]) -> bool:
    """Return whether a strategy can be built with these parameters."""
    try:
        strategy_class.model_validate(dict(parameters))
    except ValidationError:
        return False
    return True
