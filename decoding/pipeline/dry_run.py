"""Determine the needs and costs of a strategy, by running its text side on a blank image with fake replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from decoding.drafts import DraftEffect, ReadDraft, Segment, SendTokens, StartDraft
from decoding.engine import Capability
from decoding.errors import StrategyFailed
from decoding.outputs import Answer, FinishInfo, RelevanceMap, StateHandle, Token, TokenLogprob, Usage
from decoding.pipeline.capabilities import find_declared_needs
from decoding.pipeline.program import ProgramResult, start_program
from decoding.requests import GenerateRequest, ImageInput, ProbeRequest, Prompt, RelevanceRequest, VectorsRequest
from decoding.strategy import Effect, Strategy

QUESTION = "Is there a cat in the image?"
IMAGE_SIZE = 512  # pixels a side
MAX_REQUESTS = 10_000
CAPABILITY_HOOKS: frozenset[Capability] = frozenset(
    {"logits", "head_scales", "edit_attention_scores", "gate_heads", "keep_image_tokens", "early_exit_layers", "steer"}
)


@dataclass(frozen=True, slots=True)
class DryRun:
    """Needs and costs of a strategy with given parameters."""

    needs: frozenset[Capability]
    branches: tuple[str, ...]  # of the final request; each is one more row per step
    extra_requests: Mapping[str, int]  # "answers", "probed prompts", "relevance maps", "answers about a draft"
    extra_rows: int = 0  # most rows that the extra requests, and a draft beside them, take at a time
    votes: bool = False  # ends with an `Answer` of its own, which cannot be streamed
    reads_drafts: bool = False  # reads its answer, and sends it sentence by sentence


def dry_run(strategy: Strategy, max_requests: int = MAX_REQUESTS) -> DryRun:
    """Collect the needs and costs of one request.

    Args:
        strategy: The strategy, with its parameters.
        max_requests: Extra requests after which the strategy counts as endless. All of them are kept in memory.

    Returns:
        The needs and costs. A strategy that searches makes more or fewer requests on a real image.
    """
    effects, outcome = run_program(strategy, max_requests)
    requests = list_requests(effects)
    generations = [request for request in requests if isinstance(request, GenerateRequest)]
    reads_drafts = strategy.overrides_stream()
    probes = [request for request in requests if isinstance(request, ProbeRequest)]
    relevances = [request for request in requests if isinstance(request, RelevanceRequest)]
    final = [outcome] if isinstance(outcome, GenerateRequest) else []
    needs: set[Capability] = set(CAPABILITY_HOOKS & strategy.list_hooks() | find_declared_needs(strategy))
    for request in (*generations, *final):
        needs |= find_request_needs(request)
    if probes:
        needs.add("probe")
        captured = frozenset[str]().union(*(probe.capture for probe in probes))
        kinds: tuple[Capability, ...] = ("vision_attention", "attention", "hidden_states", "attention_updates")
        needs |= {kind for kind in kinds if kind in captured}
    if relevances:
        needs.add("relevance")
    if any(isinstance(request, VectorsRequest) for request in requests):
        needs.add("vectors")
    if reads_drafts:
        needs.add("answer_prefix")
    counts = {
        "answers about a draft" if reads_drafts else "answers": len(generations),
        "probed prompts": sum(len(probe.prompts) for probe in probes),
        "relevance maps": len(relevances),
    }
    return DryRun(
        needs=frozenset(needs),
        branches=tuple(name.removeprefix(f"{strategy.name}/") for request in final for name in request.branches),
        extra_requests={label: count for label, count in counts.items() if count},
        extra_rows=max((count_rows(effect) for effect in effects), default=0) + reads_drafts,
        votes=isinstance(outcome, Answer),
        reads_drafts=reads_drafts,
    )


def count_rows(effect: Effect | DraftEffect) -> int:
    """Return the rows that the requests of an effect take while they run."""
    match effect:
        case list():
            return sum(count_rows(request) for request in effect)
        case GenerateRequest():
            return 1 + len(effect.branches)
        case ProbeRequest():
            return len(effect.prompts)
        case _:
            return 0


def find_request_needs(request: GenerateRequest) -> set[Capability]:
    """Find the capabilities that one generation request needs."""
    images = [image for prompt in (request.prompt, *request.branches.values()) for image in prompt.images]
    needs: dict[Capability, bool] = {
        "branches": bool(request.branches),
        "scored_texts": bool(request.scored_texts),
        "forced_token_ids": bool(request.sampling.forced_token_ids),
        "answer_prefix": bool(request.answer_prefix or request.ruled_out),
        "logprobs": request.sampling.top_logprobs is not None,
        "update_state": request.updates_state,
        "noise": any(image.noise for image in images),
    }
    return {capability for capability, is_needed in needs.items() if is_needed}


def run_program(strategy: Strategy, max_requests: int = MAX_REQUESTS) -> tuple[list[Effect | DraftEffect], Any]:
    """Run a text side to its end.

    Args:
        strategy: The strategy, with its parameters.
        max_requests: Requests after which the strategy counts as endless.

    Returns:
        All its effects, and its outcome: a request, an answer, or a finish reason.

    Raises:
        StrategyFailed: The strategy makes requests without end.
    """
    program, reply = start_program(strategy, GenerateRequest(Prompt.from_text(QUESTION, create_blank_image()))), None
    effects: list[Effect | DraftEffect] = []
    num_requests = 0
    while num_requests < max_requests:
        effect = program.advance(reply)
        if isinstance(effect, ProgramResult):
            return effects, effect.outcome
        effects.append(effect)
        num_requests += len(effect) if isinstance(effect, list) else 1
        reply = build_fake_reply(effect)
    raise StrategyFailed(strategy.name, f"does not end a dry run within {max_requests} requests")


def list_requests(
    effects: Sequence[Effect | DraftEffect],
) -> list[GenerateRequest | ProbeRequest | RelevanceRequest | VectorsRequest]:
    """List the requests among effects. Those of a list count one by one."""
    requests: list[GenerateRequest | ProbeRequest | RelevanceRequest | VectorsRequest] = []
    for effect in effects:
        if not isinstance(effect, StartDraft | ReadDraft | SendTokens):
            requests += effect if isinstance(effect, list) else [effect]
    return requests


def create_blank_image() -> ImageInput:
    """Return a black image that is large enough to be cut into crops."""
    return ImageInput(Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)))


def build_fake_reply(effect: Effect | DraftEffect) -> Any:
    """Return a reply of the type that an engine would give."""
    match effect:
        case GenerateRequest():
            logprobs = {text: np.log(0.5).item() for text in effect.scored_texts}
            finish = FinishInfo("stop", Usage(), StateHandle("dry run") if effect.updates_state else None, logprobs)
            count = effect.sampling.top_logprobs or 0
            top = [TokenLogprob(number, "A", b"A", -np.log(count).item()) for number in range(count)]
            return Answer("Yes.", (Token(0, "Yes.", top=tuple(top), finish=finish),), finish)
        case ProbeRequest() | VectorsRequest():
            return StateHandle("dry run")
        case RelevanceRequest():
            return RelevanceMap(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), similarity=0.5, input_size=32)
        case list():
            return [build_fake_reply(request) for request in effect]
        case ReadDraft():
            finish = FinishInfo("stop", Usage(completion_tokens=1, steps=1))
            return Segment((Token(0, "There is a cat.", finish=finish),), "stop")
        case _:  # StartDraft and SendTokens
            return None
