"""Run the text sides of a stack of strategies against an engine, outermost first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from decoding.engine import Engine
from decoding.errors import NO_FINISH_REASON, EngineFailed, Unsupported
from decoding.outputs import Answer, PromptLogprobs, RelevanceMap, StateHandle, Token, Usage
from decoding.pipeline.capabilities import require_hooks
from decoding.pipeline.draft_runner import DraftedAnswer, DraftRunner, Outcome, as_request
from decoding.pipeline.program import ProgramResult, StrategyProgram, advance_program
from decoding.requests import (
    GenerateRequest,
    ImageInput,
    ProbeRequest,
    RelevanceRequest,
    SamplingParams,
    VectorsRequest,
)
from decoding.strategy import Effect, Strategy

GROUNDING = "grounding/blind"


class StrategyRunner:
    """Runs one request through a stack. Closing it frees the states that its strategies left in the engine.

    Attributes:
        stack: Strategies, outermost first.
        cache_salt: Salt of the engine's caches. Requests with different salts share no cache, and no strategy can
            change the salt. None is a salt too.
        prior_usage: Sum of the costs of all requests before the final one.
        traced_images: Images whose relevance maps are kept.
        relevance_maps: The kept maps, by strategy and image.
    """

    def __init__(self, stack: Sequence[Strategy], engine: Engine, *, cache_salt: str | None = None) -> None:
        self.stack = tuple(stack)
        self.engine = engine
        self.cache_salt = cache_salt
        self.prior_usage = Usage()
        self.traced_images: frozenset[ImageInput] = frozenset()
        self.relevance_maps: dict[tuple[str, ImageInput], RelevanceMap] = {}
        self._states: list[StateHandle] = []
        # (prompt, scored texts, ids of the inner strategies) -> requests with their answers
        self._scored_answers: dict[object, list[tuple[GenerateRequest, Answer]]] = {}

    async def __aenter__(self) -> StrategyRunner:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Free the states that the strategies left in the engine."""
        for state in self._states:
            self.engine.free_state(state)

    async def resolve(
        self, request: GenerateRequest, *, grounding: bool = False, check: Strategy | None = None
    ) -> Outcome:
        """Run all text sides up to the first that reads its own answer.

        Args:
            request: The client's request.
            grounding: Measure every token of the final request against the same prompt without its images.
            check: A strategy outside the stack, which checks the claims of the answer and leaves it as it is.

        Returns:
            The final request for the engine, an answer, or an answer that a strategy reads while it is generated.
        """
        # Before any request runs.
        require_hooks(self.stack, self.engine.capabilities, self.engine.missing_reasons)
        stack = self.stack if check is None else (check, *self.stack)
        if request.continued_text:
            self._check_continued_text(stack)
        start = time.perf_counter()
        # The text to continue belongs to the final request. No other request of a strategy has it.
        outcome = await self._resolve(stack, request.replace(continued_text=""))
        if request.continued_text and not isinstance(outcome, Answer):
            outcome = outcome.replace(continued_text=request.continued_text)
        seconds = add_seconds(self.prior_usage.seconds, {"prepare": time.perf_counter() - start})
        self.prior_usage = replace(self.prior_usage, seconds=seconds)
        final = as_request(outcome)
        if grounding and final is not None and not isinstance(outcome, Answer):
            branches = {**final.branches, GROUNDING: final.prompt.without_images()}
            return outcome.replace(branches=branches, grounding_branch=GROUNDING)
        return outcome

    async def stream(self, outcome: Outcome) -> AsyncGenerator[Token, None]:
        """Stream the tokens of the outcome of `resolve`.

        Closing the generator aborts the request in the engine at once.

        Yields:
            The tokens in order. The last one has a `finish`.
        """
        if isinstance(outcome, Answer):
            for token in outcome.tokens:
                yield token
            return
        if isinstance(outcome, DraftedAnswer):
            tokens = DraftRunner(outcome, self.stream, self._answer_questions, self.add_usage).run()
        else:
            if outcome.cache_salt != self.cache_salt:  # A strategy may have set another one.
                outcome = outcome.replace(cache_salt=self.cache_salt)
            tokens = self.engine.generate(outcome)
        async with aclosing(tokens):
            async for token in tokens:
                yield token

    async def score_prompt(self, request: GenerateRequest, count: int) -> PromptLogprobs:
        """Compute the log-probabilities of the tokens of a client's prompt, without the strategies.

        Args:
            request: The client's request. The text to continue belongs to the prompt.
            count: Likeliest tokens beside each token.

        Returns:
            The log-probabilities.

        Raises:
            EngineFailed: The engine ended the request without them.
        """
        plain = GenerateRequest(
            request.prompt, SamplingParams(max_tokens=1), continued_text=request.continued_text, prompt_logprobs=count
        )
        finish = (await self._collect(plain)).finish
        if finish.prompt_logprobs is None:
            raise EngineFailed("The engine returned no log-probabilities of the prompt.")
        return finish.prompt_logprobs

    def add_usage(self, usage: Usage) -> None:
        """Add the forward passes of a request. Steps and tokens are those of the final answer only."""
        passes = self.prior_usage.forward_passes + usage.forward_passes
        self.prior_usage = replace(self.prior_usage, forward_passes=passes)

    def _check_continued_text(self, stack: tuple[Strategy, ...]) -> None:
        """Raise `Unsupported` if the engine or a strategy cannot continue a text."""
        reader = next((strategy for strategy in stack if strategy.overrides_stream()), None)
        problem = None
        if reader is not None:
            problem = f"'{reader.name}' reads an answer sentence by sentence from its beginning"
        elif "answer_prefix" not in self.engine.capabilities:
            problem = "The engine begins every answer"
        if problem is not None:
            raise Unsupported(f"{problem}, so it cannot continue one.", param="continue_final_message")

    async def _resolve(self, stack: tuple[Strategy, ...], request: GenerateRequest) -> Outcome:
        for depth, strategy in enumerate(stack):
            inner = stack[depth + 1 :]
            if strategy.overrides_stream():
                if request.scored_texts or request.updates_state:  # no text to read, or a state of the whole generation
                    continue
                base = await self._resolve(inner, request)
                return DraftedAnswer(strategy, request, base, inner)
            outcome = await self._drive(strategy, request, inner)
            if isinstance(outcome, Answer):
                return outcome
            request = outcome.replace(stack=(*outcome.stack, strategy))
        return request

    async def _drive(
        self, strategy: Strategy, request: GenerateRequest, inner: tuple[Strategy, ...]
    ) -> GenerateRequest | Answer:
        program, reply = StrategyProgram(strategy, request), None
        while not isinstance(effect := await advance_program(program, reply), ProgramResult):
            try:
                reply = await self._perform(effect, inner)
                if isinstance(effect, RelevanceRequest) and effect.image in self.traced_images:
                    self.relevance_maps[strategy.name, effect.image] = reply
            except BaseException:
                program.close()
                raise
        outcome: GenerateRequest | Answer = effect.outcome
        return outcome

    async def _perform(self, effect: Effect, inner: tuple[Strategy, ...]) -> Any:
        match effect:
            case GenerateRequest():
                return await self._answer(effect, inner)
            case ProbeRequest():
                state, usage = await self.engine.probe(replace(effect, cache_salt=self.cache_salt))
                self._states.append(state)
                self.add_usage(usage)
                return state
            case RelevanceRequest():
                return await self.engine.compute_relevance_map(replace(effect, cache_salt=self.cache_salt))
            case VectorsRequest():
                state = await self.engine.load_vectors(effect)
                self._states.append(state)
                return state
            case list():
                return await self._gather(self._answer(request, inner) for request in effect)

    async def _answer_questions(self, requests: list[GenerateRequest], inner: tuple[Strategy, ...]) -> list[Answer]:
        """Answer requests about a draft.

        A request for scored texts that another choice of `n` has made runs once. One without an image goes to the model
        itself: the inner strategies may need an image.

        Returns:
            The answers.
        """
        own = tuple(map(id, inner))
        known = [self._find_answer(request, own) for request in requests]
        new = [request for request, answer in zip(requests, known, strict=True) if answer is None]
        answers = await self._gather(self._answer_question(each, inner if each.prompt.images else ()) for each in new)
        for request, answer in zip(new, answers, strict=True):
            if request.scored_texts:
                self._scored_answers.setdefault((request.prompt, request.scored_texts, own), []).append(
                    (request, answer)
                )
        following = iter(answers)
        return [next(following) if answer is None else answer for answer in known]

    def _find_answer(self, request: GenerateRequest, inner: tuple[int, ...]) -> Answer | None:
        """Return the answer to an equal request for scored texts, which has no random part."""
        if not request.scored_texts or request.updates_state:
            return None
        stored = self._scored_answers.get((request.prompt, request.scored_texts, inner), [])
        return next((answer for other, answer in stored if other == request), None)

    async def _gather(self, answers: Iterable[Coroutine[Any, Any, Answer]]) -> list[Answer]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(answer) for answer in answers]
        except ExceptionGroup as failures:  # the first failure has cancelled the others
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer_question(self, request: GenerateRequest, inner: tuple[Strategy, ...]) -> Answer:
        """Answer a request about a draft. The scores of texts are read before the cuts of the inner strategies."""
        outcome = await self._resolve(inner, request)
        if request.scored_texts and isinstance(outcome, GenerateRequest):
            outcome = outcome.replace(stack=tuple(strategy.without_cut() for strategy in outcome.stack))
        return await self._collect(outcome)

    async def _answer(self, request: GenerateRequest, inner: tuple[Strategy, ...]) -> Answer:
        return await self._collect(await self._resolve(inner, request))

    async def _collect(self, outcome: Outcome) -> Answer:
        if isinstance(outcome, Answer):
            return outcome
        answer = await collect_answer(self.stream(outcome))
        if answer.state is not None:
            self._states.append(answer.state)
        self.add_usage(answer.finish.usage)
        return answer


async def collect_answer(stream: AsyncGenerator[Token, None]) -> Answer:
    """Collect a stream of tokens into an answer.

    Returns:
        The answer.

    Raises:
        EngineFailed: The stream ends without a finish reason.
    """
    tokens: list[Token] = []
    async with aclosing(stream):
        async for token in stream:
            tokens.append(token)
    if not tokens or tokens[-1].finish is None:
        raise EngineFailed(NO_FINISH_REASON)
    return Answer("".join(token.text for token in tokens), tuple(tokens), tokens[-1].finish)


def add_seconds(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Add the times of two mappings phase -> seconds."""
    return {phase: one.get(phase, 0.0) + other.get(phase, 0.0) for phase in {**one, **other}}
