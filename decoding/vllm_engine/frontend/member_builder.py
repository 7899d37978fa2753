"""Build the members of a gang from a request, and check that the gang can run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from decoding.errors import BadRequest
from decoding.pipeline.composition import select_branch_names
from decoding.prompt import Prompt
from decoding.requests import MAIN, GenerateRequest, ProbeRequest, StateHandle
from decoding.sampling_params import SamplingParams
from decoding.tensor_hooks import TensorHooks
from decoding.text.prompt_encoder import AnswerStart, ModelInputs
from decoding.vllm_engine.member import Member, ProbeSpec, PruningSpec, StateUpdate, StrategySpec


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits of the running engine."""

    max_model_len: int  # tokens of prompt and answer together
    max_rows: int
    max_batched_tokens: int  # tokens in the largest step
    blocks: int  # blocks of the KV cache that requests can use
    block_size: int  # tokens in a block
    num_layers: int = 0  # layers for early exits
    has_tied_embeddings: bool = False  # whether the model's head is its input embedding


@dataclass(frozen=True, slots=True)
class MemberRequest:
    """One prompt of a request."""

    name: str  # MAIN, or the name of a branch or of a probed prompt
    prompt: Prompt
    inputs: ModelInputs
    member: Member | None  # None: the request has no gang
    cache_salt: str | None = None  # separates its KV cache from that of equal prompts with another salt
    image_salt: str | None = None  # separates its images in the same way, in the cache of vision features


def build_members(
    request: GenerateRequest,
    inputs: Mapping[str, ModelInputs],
    gang: str,
    first_tokens: Mapping[str, Sequence[int]],
    eos_token_ids: Sequence[int],
    updated_state: StateHandle | None,
    answer_start: AnswerStart,
    num_layers: int = 0,
) -> list[MemberRequest]:
    """Build the members of a generation request.

    Args:
        request: The request.
        inputs: MAIN or name of a branch -> encoded prompt.
        gang: Id of the gang.
        first_tokens: Scored text -> tokens with which it can begin.
        eos_token_ids: Tokens that end an answer.
        updated_state: State into which the answer's logits are folded.
        answer_start: Tokens that `inputs` end with and that belong to the answer, and ruled-out sequences.
        num_layers: Layers of the model.

    Returns:
        The members, the main one first.
    """
    prompts = {MAIN: request.prompt, **request.branches}
    size, sampling = len(prompts), request.sampling
    end_token_ids = find_end_tokens(sampling, eos_token_ids)
    has_hooks = any(strategy.list_hooks() for strategy in request.stack)
    is_plain = size == 1 and not (
        has_hooks
        or request.scored_texts
        or request.state_updater
        or sampling.forced_token_ids
        or sampling.min_tokens
        or answer_start.ruled_out
    )
    main = Member(
        gang=gang,
        name=MAIN,
        size=size,
        stack=tuple(StrategySpec.from_strategy(strategy) for strategy in request.stack),
        branches=tuple(request.branches),
        states={strategy: state.handle for strategy, state in request.states.items()},
        first_tokens=first_tokens,
        forced_token_ids=sampling.forced_token_ids,
        answer_prefix_length=len(answer_start.ids),
        ruled_out=answer_start.ruled_out,
        min_tokens=sampling.min_tokens,
        eos_token_ids=(*eos_token_ids, *sampling.stop_token_ids),
        grounding_branch=request.grounding_branch,
        state_update=StateUpdate(StrategySpec.from_strategy(request.state_updater), updated_state.handle, end_token_ids)
        if request.state_updater and updated_state
        else None,
    )
    prunings = find_prunings(request)
    members = {name: main if name == MAIN else Member(gang, name, size, pruning=prunings.get(name)) for name in prompts}
    salt = request.cache_salt
    main_salt = build_steering_salt(
        build_cache_salt(salt, request.stack, request.states), request.stack, request.states
    )
    steers_answer = any(
        "steer" in strategy.list_hooks() and not strategy.steered_layers(num_layers).acts_on_prompt
        for strategy in request.stack
    )
    if steers_answer or any(strategy.acts_on_attention() for strategy in request.stack):
        # Keys and values of edited tokens depend on where the prompt ends. No other request reads them.
        main_salt = json.dumps([main_salt, gang])
    # Keys and values of a branch without some image tokens are those of no other prompt.
    salts = {MAIN: main_salt, **{name: json.dumps([salt, gang, name]) for name in prunings}}
    return [
        MemberRequest(name, prompt, inputs[name], None if is_plain else members[name], salts.get(name, salt), salt)
        for name, prompt in prompts.items()
    ]


def build_probe_members(
    probe: ProbeRequest, inputs: Mapping[str, ModelInputs], gang: str, state: StateHandle
) -> list[MemberRequest]:
    """Build the members of a probe, whose prompts run whole in one step.

    Args:
        probe: The probe.
        inputs: Prompt name -> encoded prompt.
        gang: Id of the gang.
        state: State into which the activations are folded.

    Returns:
        The members, the main one first.
    """
    strategy = StrategySpec.from_strategy(probe.strategy)
    spec = ProbeSpec(strategy, probe.main, probe.layerwise, state.handle, tuple(sorted(probe.capture)))
    size = len(probe.prompts)
    main = MemberRequest(
        MAIN,
        probe.prompts[probe.main],
        inputs[probe.main],
        Member(gang, MAIN, size, is_single_step=True, probe=spec),
        build_cache_salt(probe.cache_salt, (probe.strategy,), {probe.strategy.name: state}),
        probe.cache_salt,
    )
    others = [
        MemberRequest(
            name,
            prompt,
            inputs[name],
            Member(gang, name, size, is_single_step=True),
            probe.cache_salt,
            probe.cache_salt,
        )
        for name, prompt in probe.prompts.items()
        if name != probe.main
    ]
    return [main, *others]


def find_end_tokens(sampling: SamplingParams, eos_token_ids: Sequence[int]) -> tuple[int, ...]:
    """Find the tokens with which vLLM ends an answer."""
    return (*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids))


def find_prunings(request: GenerateRequest) -> dict[str, PruningSpec]:
    """Find the branches whose strategy drops image tokens.

    Args:
        request: The request.

    Returns:
        Branch -> its pruning.
    """
    prunings: dict[str, PruningSpec] = {}
    for strategy in request.stack:
        if "keep_image_tokens" in strategy.list_hooks():
            state = request.states.get(strategy.name)
            spec = PruningSpec(StrategySpec.from_strategy(strategy), state.handle if state else None)
            prunings |= dict.fromkeys(select_branch_names(strategy, request.branches), spec)
    return prunings


def build_cache_salt(
    request_salt: str | None, stack: Sequence[TensorHooks], states: Mapping[str, StateHandle]
) -> str | None:
    """Build the salt of the KV cache of a main prompt: the request's salt, and the head scales of its stack.

    Equal salts mean equal head scales: an answer continues from its probe's main prompt and reads no cache with other
    scales. The salt names the states, because rounding may make two probes of one prompt select other heads.

    Args:
        request_salt: Salt of the request, which keeps the caches of API keys apart.
        stack: Strategies of the request.
        states: Strategy name -> its state.

    Returns:
        The salt; that of the request if no strategy scales heads.
    """
    return add_to_salt(request_salt, [each for each in stack if "head_scales" in each.list_hooks()], states)


def build_steering_salt(
    salt: str | None, stack: Sequence[TensorHooks], states: Mapping[str, StateHandle]
) -> str | None:
    """Build the salt of a main prompt that is steered. Its probe ran without the steering, so that their salts differ.

    Args:
        salt: Result of `build_cache_salt`.
        stack: Strategies of the request.
        states: Strategy name -> its state.

    Returns:
        The salt; `salt` if no strategy steers.
    """
    steering = [strategy for strategy in stack if "steer" in strategy.list_hooks()]
    return add_to_salt(json.dumps([salt, "steered"]), steering, states) if steering else salt


def add_to_salt(salt: str | None, strategies: Sequence[TensorHooks], states: Mapping[str, StateHandle]) -> str | None:
    """Add strategies and their states to a salt. Without strategies it stays."""
    handles = {strategy.name: states[strategy.name].handle for strategy in strategies if strategy.name in states}
    parts = [(strategy.name, strategy.model_dump_json(), handles.get(strategy.name)) for strategy in strategies]
    return json.dumps([salt, *parts]) if parts else salt


def compute_max_new_tokens(
    request: GenerateRequest, members: Sequence[MemberRequest], limits: EngineLimits, prefix_length: int = 0
) -> int:
    """Compute the most tokens that are generated.

    Args:
        request: The request.
        members: Its members.
        limits: Limits of the engine.
        prefix_length: Tokens of the answer that the prompts end with.

    Returns:
        Tokens; fewer than the request allows if the model's context or the KV cache has no room for them.

    Raises:
        BadRequest: The gang could never run, because a prompt is too short or the rows do not fit the cache together.
    """
    lengths = [len(member.inputs) for member in members]
    if min(lengths) < 2:
        raise BadRequest("A prompt of one token cannot be answered.", param="messages")
    room = limits.max_model_len - max(lengths)
    most = request.sampling.max_tokens
    is_scored = bool(request.scored_texts) or request.prompt_logprobs is not None
    tokens = 1 if is_scored else min(room if most is None else most - prefix_length, room)
    if count_blocks(lengths, tokens, limits.block_size) <= limits.blocks:
        return tokens
    if request.sampling.max_tokens is None:
        while tokens > 1:
            tokens -= 1
            if count_blocks(lengths, tokens, limits.block_size) <= limits.blocks:
                return tokens
    raise BadRequest(
        f"The prompts and answers of the request's {len(members)} rows do not fit the engine's cache of "
        f"{limits.blocks * limits.block_size} tokens together.",
        param="max_completion_tokens",
        code="context_length_exceeded",
    )


def check_probe_fits(members: Sequence[MemberRequest], limits: EngineLimits) -> None:
    """Check that the prompts of a probe can run in one step.

    Args:
        members: Members of the probe.
        limits: Limits of the engine.

    Raises:
        BadRequest: The probe has more rows, tokens or KV blocks than the engine has for one step.
    """
    lengths = [len(member.inputs) for member in members]
    if len(members) > limits.max_rows:
        raise BadRequest(f"The probe needs {len(members)} rows; this engine runs {limits.max_rows}.")
    if sum(lengths) > limits.max_batched_tokens or count_blocks(lengths, 1, limits.block_size) > limits.blocks:
        raise BadRequest(
            f"The prompts of the strategy's probe have {sum(lengths)} tokens together, which this engine cannot run "
            "in one step.",
            param="messages",
            code="context_length_exceeded",
        )


def count_blocks(prompt_lengths: Sequence[int], new_tokens: int, block_size: int) -> int:
    """Count the KV blocks of prompts whose answers have so many tokens."""
    return sum(-(-(length + new_tokens) // block_size) for length in prompt_lengths)
