"""A generation request inside the engine: its status, its inputs and hooks, and the tokens of its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Lock
from typing import Any

from torch import Tensor

from decoding.errors import OnlySeenError
from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.sampler import SamplerState
from decoding.hf_engine.strategy_state import StoredStrategyState
from decoding.outputs import NO_TOKEN, PromptScores, Token
from decoding.pipeline.attention_hooks import (
    compute_attention_batch_key,
    find_question_start,
    select_attention_stack,
    select_question_stack,
)
from decoding.pipeline.composition import attribute_errors, combine_head_scales, select_branch_names
from decoding.pipeline.early_exits import find_early_exits
from decoding.pipeline.grounding import compute_grounding, score_texts
from decoding.pipeline.kept_tokens import find_kept_tokens, index_image_tokens
from decoding.pipeline.logits_hooks import RequestHooks
from decoding.pipeline.steering import find_steered_places, select_prompt_steering, select_steering_stack
from decoding.prompt import Prompt
from decoding.requests import MAIN, GenerateRequest
from decoding.row_reservation import RowReservation
from decoding.tensor_hooks import Activations, Tensors
from decoding.text.detokenizer import OutputProcessor, RankedTokens, TokenText
from decoding.text.grammar_mask import GrammarCompiler
from decoding.text.prompt_encoder import AnswerStart, ModelInputs


class RequestStatus(Enum):
    """Status of a request. The last three are final."""

    PENDING = auto()  # in the queue
    PREFILLING = auto()
    DECODING = auto()
    PREEMPTED = auto()  # in the queue again, until it joins the batch and recomputes its answer
    FINISHED = auto()
    FAILED = auto()
    ABORTED = auto()

    @property
    def is_final(self) -> bool:
        return self in (RequestStatus.FINISHED, RequestStatus.FAILED, RequestStatus.ABORTED)


@dataclass(eq=False, slots=True)
class RequestHandle:
    """A request between the event loop and the worker thread. The event loop aborts it and reads its outputs."""

    request: RequestState
    reservation: RowReservation
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Token | OnlySeenError] = field(default_factory=asyncio.Queue)
    status: RequestStatus = RequestStatus.PENDING
    blocked_since: float | None = None  # monotonic time; None while the KV cache has room for it
    left: asyncio.Future[None] = field(init=False)  # done once the request has left the batch for good
    _lock: Lock = field(default_factory=Lock)  # both threads set the status

    def __post_init__(self) -> None:
        self.left = self.loop.create_future()

    def leave(self) -> None:
        """Mark the request as one that the worker thread does not change any more."""
        call_in_loop(self.loop, self._set_left)

    def _set_left(self) -> None:
        if not self.left.done():
            self.left.set_result(None)

    def advance(self, status: RequestStatus) -> None:
        """Set the status, unless it is final. Rows count as waiting up to the first token, as on vLLM."""
        with self._lock:
            if not self.status.is_final:
                self.status = status
                self.reservation.is_running |= status not in (RequestStatus.PENDING, RequestStatus.PREFILLING)

    def send(self, output: Token | OnlySeenError) -> None:
        """Pass an output to the event loop."""
        call_in_loop(self.loop, self.outputs.put_nowait, output)


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in an event loop from another thread. A closed loop is ignored: nothing waits there."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


class RequestState:
    """A generation request with its inputs and hooks. The encode thread builds it; then the worker thread owns it.

    Attributes:
        source: The request as the engine received it.
        inputs: Name of a prompt -> the prompt, encoded. The answer prefix follows each prompt.
        answer_start: Answer prefix and ruled-out phrases.
        output_ids: Tokens of the answer so far, the answer prefix included.
        recompute_ids: After a preemption, tokens of the answer that the rows have not recomputed.
        hooks: Strategies with their states, for the `logits` hooks.
        head_scales: [layers, heads] of the main row.
        attention_stack: Strategies that edit attention scores of the main row, innermost first, with their states.
        attention_batch_key: Requests with equal keys share hook calls of their `attention_stack`.
        question_stack: Strategies of `attention_stack` that also edit the prompt's tokens after its last image.
        question_start: Position after the last image of the prompt.
        steering_stack: Strategies that steer the main row, innermost first, with their states.
        steering_batch_key: Requests with equal keys share hook calls of their `steering_stack`.
        steered_places: Places of all strategies of `steering_stack`.
        prompt_steering_stack: Strategies of `steering_stack` that also steer the tokens of the prompt.
        early_exits: Strategy name -> its early exits.
        early_logits: Strategy name -> [exits, vocab] at the current step.
        image_token_index: [prompt tokens] number of the image token; -1 at text.
        kept_tokens: Branch -> [layers, prompt tokens] true where the branch sees the token.
        first_tokens: Scored text -> ids of tokens that can begin it.
        failure: Exception of a strategy inside the model.
        updated_state: State into which the answer's logits are folded.
        prompt_scores: Scores of the prompt's tokens, for a request for them.
    """

    def __init__(
        self,
        source: GenerateRequest,
        inputs: Mapping[str, ModelInputs],
        states: Mapping[str, StoredStrategyState],
        model: Model,
        token_text: TokenText,
        grammars: GrammarCompiler,
        answer_start: AnswerStart,
    ) -> None:
        """Build a request.

        Args:
            source: The request.
            inputs: Its prompts, encoded, each followed by the answer prefix.
            states: Strategy name -> its state.
            model: The model.
            token_text: Text of the model's tokens.
            grammars: Compiler of grammars.
            answer_start: Answer prefix and ruled-out phrases.
        """
        stack, sampling, main_ids = source.stack, source.sampling, inputs[MAIN].ids.to(model.device)
        prompt = inputs[MAIN].without_last(len(answer_start.ids))
        self.source = source
        self.inputs = inputs
        self.answer_start = answer_start
        self.output_ids = list(answer_start.ids)
        self.recompute_ids: deque[int] = deque()
        self.hooks = RequestHooks.from_stack(
            stack, source.branches, {strategy: state.tensors for strategy, state in states.items()}
        )
        # Strategies as JSON, because one with a list among its parameters has no hash.
        self.stack_key = tuple((type(strategy), strategy.model_dump_json()) for strategy in stack)
        scales = combine_head_scales(stack, self.hooks.states, (model.num_layers, model.head_tap.num_heads))
        self.head_scales = None if scales is None else scales.to(model.device, model.dtype)
        self.attention_stack = select_attention_stack(stack, self.hooks.states)
        self.attention_batch_key = compute_attention_batch_key(self.attention_stack)
        self.question_stack = select_question_stack(self.attention_stack)
        self.steering_stack = select_steering_stack(stack, self.hooks.states)
        self.steering_batch_key = compute_attention_batch_key(self.steering_stack)
        self.steered_places = find_steered_places(self.steering_stack, model.num_layers)
        self.prompt_steering_stack = select_prompt_steering(self.steering_stack, model.num_layers)
        self.early_exits = find_early_exits(stack, model.num_layers, model.has_tied_embeddings)
        self.early_logits: Mapping[str, Tensor] = {}
        self.image_token_index = index_image_tokens(main_ids == model.image_token_id)
        is_image = inputs[MAIN].ids == model.image_token_id  # on the CPU, so that nothing waits for a device
        self.question_start = find_question_start(is_image) if self.question_stack else len(is_image)
        self.kept_tokens = collect_kept_tokens(source, inputs, self.hooks.states, model)
        self.first_tokens = model.encoder.find_first_tokens(source.scored_texts)
        self.sampler_state = SamplerState(
            sampling, prompt.ids.to(model.device), model.eos_token_ids_on_device, model.vocab_size
        )
        self.grammar_mask = None if sampling.grammar is None else grammars.create_mask(sampling.grammar)
        for token in answer_start.ids:
            self.sampler_state.add_token(token)
            if self.grammar_mask is not None:
                self.grammar_mask.accept_token(token)
        self.updated_state: Tensors = {}
        self.failure: Exception | None = None
        longest = self.max_prompt_length - len(answer_start.ids)
        self.output_processor = OutputProcessor(
            source,
            prompt,
            min(sampling.max_tokens or model.max_model_len, model.max_model_len - longest),
            frozenset(model.eos_token_ids),
            token_text,
            model.encoder.tokenizer,
            answer_prefix=answer_start.ids,
            image_token_id=model.image_token_id,
        )
        self.prompt_scores: PromptScores | None = None
        self.stats = self.output_processor.stats
        self._states = states

    @property
    def lazy_branches(self) -> frozenset[str]:
        """Names of branches that run only at steps that need them."""
        return self.hooks.lazy_branches

    @property
    def generated_ids(self) -> list[int]:
        """Tokens of the answer so far, without the answer prefix."""
        return self.output_ids[len(self.answer_start.ids) :]

    @property
    def max_prompt_length(self) -> int:
        """Length of the longest prompt, with the answer prefix."""
        return max(map(len, self.inputs.values()))

    @property
    def row_prompts(self) -> dict[str, Prompt]:
        """The prompts that have a row in every step, by name."""
        prompts = {MAIN: self.source.prompt, **self.source.branches}
        return {name: prompt for name, prompt in prompts.items() if name not in self.lazy_branches}

    def find_probe_prefill(self) -> PrefillOutput | None:
        """Return the prefill of a probe with the same main prompt and head scales, or None."""
        if self.attention_stack or self.early_exits or self.answer_start.ids or self.prompt_steering_stack:
            return None
        for state in self._states.values():
            if state.fits(self.source.prompt, self.head_scales):
                return state.prefill
        return None

    def is_plain(self, name: str) -> bool:
        """Return whether no strategy acts inside the model while the prompt `name` runs."""
        if name != MAIN:
            return name not in self.kept_tokens
        is_steered = self.prompt_steering_stack or (self.steering_stack and self.answer_start.ids)
        return not (self.head_scales is not None or self.attention_stack or self.early_exits or is_steered)

    def update_state(self, raw: Tensor) -> None:
        """Fold the raw logits of a step, [vocab], into the state of `source.state_updater`, if there is one."""
        strategy = self.source.state_updater
        if strategy is not None:
            with attribute_errors(strategy):
                self.updated_state = strategy.update_state(self.updated_state, Activations(logits=raw))

    def add_token(self, token: int, scores: Tensor, logits: Mapping[str, Tensor], changed: bool) -> Token:
        """Add a sampled token to the answer. A grammar that becomes too complicated raises `BadRequest`.

        Args:
            token: Its id.
            scores: [vocab] after the strategies.
            logits: Name of a prompt -> [vocab]; only read with a grounding branch.
            changed: Whether the strategies changed the likeliest token.

        Returns:
            The output for the client.
        """
        self.sampler_state.add_token(token)
        self.output_ids.append(token)
        output = self.output_processor.add_token(
            token, changed, self._rank_tokens(token, scores), self._compute_grounding(token, logits)
        )
        if self.grammar_mask is not None and output.finish is None:
            self.grammar_mask.accept_token(token)
        return output

    def add_text_logprobs(self, scores: Tensor, changed: bool) -> Token:
        """Finish a request for scored texts. The probability of a text is that of all tokens that can begin it.

        Args:
            scores: [vocab] after the strategies.
            changed: Whether the strategies changed the likeliest token.

        Returns:
            The output for the client.
        """
        logprobs = score_texts(scores, self.first_tokens)
        return self.output_processor.add_text_logprobs(int(scores.argmax()), changed, logprobs)

    def add_prompt_logprobs(self) -> Token:
        """Finish a request for the log-probabilities of its prompt, whose scores are known."""
        assert self.prompt_scores is not None, "the prompt has run"
        return self.output_processor.add_prompt_logprobs(NO_TOKEN, self.prompt_scores)

    def _rank_tokens(self, token: int, scores: Tensor) -> RankedTokens:
        if self.source.sampling.top_logprobs is None:
            return ()
        logprobs = scores.log_softmax(-1)
        best = logprobs.topk(self.source.sampling.top_logprobs)
        return [(token, float(logprobs[token])), *zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def _compute_grounding(self, token: int, logits: Mapping[str, Tensor]) -> float | None:
        branch = self.source.grounding_branch
        if branch is None:
            return None
        return float(compute_grounding(logits[MAIN], logits[branch])[token])


def collect_kept_tokens(
    source: GenerateRequest, inputs: Mapping[str, ModelInputs], states: Mapping[str, Tensors], model: Model
) -> dict[str, Tensor]:
    """Collect which tokens the branches of a request see.

    Args:
        source: The request.
        inputs: Its prompts, encoded.
        states: Strategy name -> its state.
        model: The model.

    Returns:
        Branch -> [layers, prompt tokens] true where it sees a token. Branches that see all are absent.
    """
    kept_tokens: dict[str, Tensor] = {}
    for strategy in source.stack:
        for name in select_branch_names(strategy, source.branches):
            is_image = inputs[name].ids == model.image_token_id
            index, state = index_image_tokens(is_image).to(model.device), states.get(strategy.name, {})
            kept = find_kept_tokens(
                strategy, state, index, inputs[name].count_token(model.image_token_id), model.num_layers
            )
            if kept is not None:
                kept_tokens[name] = kept
    return kept_tokens
