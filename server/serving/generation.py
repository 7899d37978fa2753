"""The answers to one request: from the strategies' extra requests to the last token of each choice."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import anyio
import structlog
from anyio.to_thread import run_sync

from decoding.errors import NO_FINISH_REASON, BadRequest, EngineFailed, Unsupported
from decoding.outputs import NO_TOKEN, Answer, FinishInfo, PromptLogprobs, Token, Usage
from decoding.requests import GenerateRequest
from server.errors import RequestTimeout
from server.observability import tracing
from server.observability.logs import describe_parameters
from server.schemas.response import ClaimEntry, Receipt, to_claim_entries
from server.serving.trace_images import render_trace_images

if TYPE_CHECKING:
    from decoding.pipeline.draft_runner import Outcome
    from decoding.pipeline.runner import StrategyRunner
    from decoding.strategy import Strategy
    from server.observability.metrics import RequestMetrics
    from server.serving.row_estimator import RowEstimator

log = structlog.get_logger("onlyseen.server")

T = TypeVar("T")
ChoiceToken = tuple[int, Token]  # the index of a choice, and its next token


class Generation:
    """Generates the choices of one request. Call `start`, iterate `stream_tokens`, then `close`.

    `close` aborts what still runs in the engine and frees the request's states there.
    """

    def __init__(
        self,
        runner: StrategyRunner,
        requests: Sequence[GenerateRequest],
        *,
        choices_per_prompt: int,
        grounding: bool,
        check: Strategy | None,
        trace: bool,
        ignored: Sequence[str],
        prompt_logprobs: int | None,
        metrics: RequestMetrics,
        resources: ExitStack,
        max_rows: int,
        rows_at_once: int | None,
        row_estimator: RowEstimator,
        work_limiter: anyio.CapacityLimiter,
    ) -> None:
        """Create a generation.

        Args:
            runner: Runs the strategies.
            requests: A request for each prompt.
            choices_per_prompt: Choices of each prompt.
            grounding: Whether tokens get their grounding.
            check: The check of claims, if there is one.
            trace: Whether the receipt has the images of the branches.
            ignored: Fields of the request without effect, for the receipt.
            prompt_logprobs: Likeliest tokens beside each token of the prompts. None: no log-probabilities of them.
            metrics: Metrics of the request.
            resources: Memory of the grammar and the images. `close` releases it.
            max_rows: Rows of the engine. A request of more is refused.
            rows_at_once: Rows that the request may take at a time, the share of its API key. Choices beyond them start
                when others have ended. One choice always runs. None: all choices run at a time.
            row_estimator: Estimates the rows of a choice.
            work_limiter: Bounds the threads that render the images of the trace or format log-probabilities.
        """
        self.choices = choices_per_prompt * len(requests)
        self.finish_infos: dict[int, FinishInfo] = {}  # by choice
        self._runner = runner
        self._requests = requests
        self._choices_per_prompt = choices_per_prompt
        self._grounding = grounding
        self._check = check
        self._trace = trace
        self._ignored = ignored
        self._prompt_logprobs = prompt_logprobs
        self._scored_prompts: list[PromptLogprobs] = []
        self._metrics = metrics
        self._resources = resources
        self._max_rows = max_rows
        self._rows_at_once = rows_at_once
        self._row_estimator = row_estimator
        self._work_limiter = work_limiter
        self._deadline: float | None = None
        self._started_at = time.perf_counter()
        self._branches: tuple[str, ...] = ()
        self._trace_images: dict[str, list[str]] | None = None
        self._answered_by_strategy: tuple[bool, ...] = ()  # for each prompt
        self._tokens: AsyncGenerator[ChoiceToken, None] | None = None
        self._first: ChoiceToken | None = None
        self._receipt: Receipt | None = None
        self._num_tokens = [0] * self.choices
        self._prompt_tokens: dict[int, int] = {}  # by prompt
        self._claims: dict[int, list[ClaimEntry]] = {choice: [] for choice in range(self.choices)}

    async def start(self, deadline: float | None) -> None:
        """Run the strategies' extra requests and wait until every choice that runs at once has its first token.

        Args:
            deadline: When the request times out, in seconds of the event loop's clock; None: never.

        Raises:
            BadRequest: A strategy or the engine refuses the request. The response has not begun.
        """
        self._deadline = deadline
        async with enforce_timeout(deadline):
            try:
                await self._start()
            except BadRequest as error:
                if error.code == "context_length_exceeded" and await self._fits_without_strategy():
                    error.param = "decoding.strategy"
                raise

    async def _start(self) -> None:
        from decoding.pipeline.draft_runner import as_request

        if self._trace:
            self._runner.traced_images = frozenset(self._requests[0].prompt.images)
        outcomes = [
            await self._runner.resolve(request, grounding=self._grounding, check=self._check)
            for request in self._requests
        ]
        finals = [as_request(outcome) for outcome in outcomes]
        self._answered_by_strategy = tuple(final is None for final in finals)
        if any(self._answered_by_strategy) and (field := find_decoding_field(self._requests[0], self._grounding)):
            message = f"The strategy builds its answer without decoding, so {field} cannot act on it. Remove {field}."
            raise Unsupported(message, param=field)
        requests = [final for final in finals if final is not None]
        self._branches = tuple(requests[0].branches) if requests else ()
        self._check_rows(self._choices_per_prompt * sum(1 + len(request.branches) for request in requests))
        if self._prompt_logprobs is not None:
            self._scored_prompts = [
                await self._runner.score_prompt(request, self._prompt_logprobs) for request in self._requests
            ]
        if self._trace:
            self._trace_images = (
                await run_sync(
                    render_trace_images,
                    requests[0],
                    self._requests[0].prompt.images,
                    self._runner.relevance_maps,
                    limiter=self._work_limiter,
                )
                if requests
                else {}
            )
        at_once = await self._count_parallel_choices(requests)
        await self._check_late_requests(finals, at_once)
        choices = [offset_seed(outcome, choice) for outcome in outcomes for choice in range(self._choices_per_prompt)]
        streams = [
            self._runner.stream(choice if number < at_once else wait_in_full_queue(choice))
            for number, choice in enumerate(choices)
        ]
        self._tokens = merge_streams(streams, at_once)
        self._first = await anext(self._tokens, None)
        self._metrics.record_first_token()

    async def estimate_rows(self) -> int:
        """Estimate the rows at a time from dry runs of the strategies."""
        return await self._estimate_rows(self.choices, self._rows_at_once)

    async def _estimate_rows(self, choices: int, rows_at_once: int | None = None) -> int:
        return await self._row_estimator.estimate(
            self._runner.stack if self._check is None else (self._check, *self._runner.stack),
            choices,
            grounding=self._grounding,
            cache_salt=self._runner.cache_salt,
            rows_at_once=rows_at_once,
        )

    async def _count_parallel_choices(self, requests: Sequence[GenerateRequest]) -> int:
        """Return how many choices may run at a time.

        Args:
            requests: The requests of the prompts, with their branches.
        """
        if self._rows_at_once is None or self.choices == 1:
            return self.choices
        rows = max(await self._estimate_rows(1), *(1 + len(request.branches) for request in requests), 1)
        return max(1, self._rows_at_once // rows)

    async def _check_late_requests(self, requests: Sequence[GenerateRequest | None], at_once: int) -> None:
        """Check the requests whose choices all start after the response has begun, when none can be refused.

        Args:
            requests: The request of each prompt. None for a prompt that the strategy has answered.
            at_once: Choices that run at a time.
        """
        for number, request in enumerate(requests):
            if request is not None and number * self._choices_per_prompt >= at_once:
                await self._runner.engine.check(request)

    async def stream_tokens(self) -> AsyncGenerator[ChoiceToken, None]:
        """Yield the tokens of all choices in the order of arrival, until the deadline.

        Yields:
            The choice's index and its token.

        Raises:
            EngineFailed: The engine ended a choice without a finish reason.
        """
        if self._first is not None:
            yield self._record(*self._first)
        if self._tokens is not None:
            while True:
                async with enforce_timeout(self._deadline):
                    choice_token = await anext(self._tokens, None)
                if choice_token is None:
                    break
                if choice_token[1].id != NO_TOKEN:
                    self._metrics.record_token()
                yield self._record(*choice_token)
        if len(self.finish_infos) < self.choices:
            raise EngineFailed(NO_FINISH_REASON)

    async def format_prompts(self, function: Callable[[PromptLogprobs], T]) -> list[T]:
        """Format the log-probabilities of the prompts in a thread, because those of a long prompt take seconds.

        Args:
            function: Formats those of one prompt.

        Returns:
            The result for each choice. The choices of a prompt share it.
        """
        formatted = [await run_sync(function, each, limiter=self._work_limiter) for each in self._scored_prompts]
        return [each for each in formatted for _ in range(self._choices_per_prompt)]

    async def close(self) -> None:
        """Abort what still runs, free the request's states, and log the receipt of a finished request."""
        try:
            if self._tokens is not None:
                await self._tokens.aclose()
            await self._runner.close()
        finally:
            self._resources.close()
            if self.is_finished:
                receipt = self.receipt
                self._metrics.record_receipt(receipt, self.usage.prompt_tokens)
                parameters = {strategy.name: describe_parameters(strategy) for strategy in self._runner.stack}
                shown = receipt.model_dump(exclude={"parameters", "pictures", "claims"})
                log.info("receipt", parameters=parameters, **shown)
            self._metrics.finish()

    @property
    def is_finished(self) -> bool:
        return len(self.finish_infos) == self.choices

    @property
    def usage(self) -> Usage:
        """The tokens of each prompt, counted once, and of all choices."""
        first = [self.finish_infos[choice].usage for choice in range(0, self.choices, self._choices_per_prompt)]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in first),
            completion_tokens=sum(info.usage.completion_tokens for info in self.finish_infos.values()),
        )

    @property
    def usage_so_far(self) -> Usage:
        """The usage of an unfinished request. Once it is finished, the usage."""
        if self.is_finished:
            return self.usage
        return Usage(prompt_tokens=sum(self._prompt_tokens.values()), completion_tokens=sum(self._num_tokens))

    @property
    def receipt(self) -> Receipt:
        """The receipt of a finished request, whose total time ends at the last token."""
        if self._receipt is None:
            self._receipt = self._build_receipt()
        return self._receipt

    def _build_receipt(self) -> Receipt:
        from decoding.registry import format_stack

        choices = self._list_choice_usages()
        changed = [usage.changed_steps for usage in choices]
        prior = self._runner.prior_usage
        total = time.perf_counter() - self._started_at
        receipt = Receipt(
            strategy=format_stack(self._runner.stack),
            parameters={strategy.name: strategy.model_dump(mode="json") for strategy in self._runner.stack},
            branches=list(self._branches),
            steps=sum(usage.steps for usage in choices),
            forward_passes=prior.forward_passes + sum(usage.forward_passes for usage in choices),
            changed_steps=None if None in changed else sum(count or 0 for count in changed),
            timings=round_seconds({**prior.seconds, **select_slowest(choices), "total": total}),
        )
        # A field that was never set is absent from the JSON.
        extra: dict[str, object] = {}
        if self._ignored:
            extra["ignored"] = list(self._ignored)
        if self._trace_images is not None:
            extra["pictures"] = self._trace_images
        if self._check is not None or any(strategy.sends_claims for strategy in self._runner.stack):
            extra["claims"] = [claim for claims in self._claims.values() for claim in claims]
        return receipt.model_copy(update=extra)

    def to_claim_entries(self, choice: int, token: Token) -> list[ClaimEntry]:
        """Format the claims that a token of a choice carries."""
        return to_claim_entries(token.claims, choice if self.choices > 1 else None)

    def _list_choice_usages(self) -> list[Usage]:
        usages: list[Usage] = []
        for choice, info in sorted(self.finish_infos.items()):
            prompt, copy = divmod(choice, self._choices_per_prompt)
            if not self._answered_by_strategy[prompt]:
                usages.append(info.usage)
            elif copy == 0:  # all choices share a strategy's own answer, and prior_usage has its forward passes
                usages.append(replace(info.usage, forward_passes=0))
        return usages

    def _check_rows(self, rows: int) -> None:
        if rows > self._max_rows:
            message = f"The request needs {rows} rows, n * (1 + branches); the engine has {self._max_rows}."
            several_prompts = len(self._requests) > 1
            param = "n" if self._choices_per_prompt > 1 else "messages" if several_prompts else "decoding.strategy"
            raise BadRequest(message, param=param, code="too_many_sequences")

    async def _fits_without_strategy(self) -> bool:
        """Return whether the prompts fit the context without the strategies' changes to them."""
        if not self._runner.stack or "tokenize" not in self._runner.engine.capabilities:
            return False
        try:
            for request in self._requests:
                await self._runner.engine.tokenize(request.prompt)
        except BadRequest:
            return False
        return True

    def _record(self, choice: int, token: Token) -> ChoiceToken:
        self._claims[choice] += self.to_claim_entries(choice, token)
        self._num_tokens[choice] += token.id != NO_TOKEN
        if token.stats is not None:
            self._prompt_tokens[choice // self._choices_per_prompt] = token.stats.prompt_tokens
        if token.finish is not None:
            self.finish_infos[choice] = token.finish
            if self.is_finished:
                tracing.record_receipt(self.receipt)  # the request's span ends before `close` is called
        return choice, token


@asynccontextmanager
async def enforce_timeout(deadline: float | None) -> AsyncGenerator[None, None]:
    """Cancel the body of the `async with` at the deadline.

    Args:
        deadline: Seconds of the event loop's clock; None: no deadline.

    Yields:
        None.

    Raises:
        RequestTimeout: The deadline has passed.
        TimeoutError: The body raised it.
    """
    try:
        async with asyncio.timeout_at(deadline) as timeout:
            yield
    except TimeoutError:
        if timeout.expired():
            raise RequestTimeout("The answer was not ready within the server's request timeout.") from None
        raise


def merge_streams(streams: Sequence[AsyncGenerator[Token, None]], at_once: int) -> AsyncGenerator[ChoiceToken, None]:
    """Merge the streams of the choices. Closing the result closes every stream at once."""
    # A single stream needs no tasks, which would be most of the server's cost per token.
    return iterate_single(streams[0]) if len(streams) == 1 else iterate_several(streams, at_once)


async def iterate_several(
    streams: Sequence[AsyncGenerator[Token, None]], at_once: int
) -> AsyncGenerator[ChoiceToken, None]:
    """Yield the tokens of all streams.

    None is yielded before each of the first `at_once` streams has a token: a refusal must precede the response.

    Args:
        streams: The streams of the choices.
        at_once: Streams that run at a time. The others start in their order, when one has ended.

    Yields:
        Index of a stream and its next token, in the order of arrival.

    Raises:
        Exception: A stream has raised it.
    """  # noqa: DOC502 - the first of the exceptions

    async def advance(stream: AsyncGenerator[Token, None]) -> Token | None:
        return await anext(stream, None)

    waiting = deque(range(at_once, len(streams)))
    pending = {asyncio.create_task(advance(stream)): index for index, stream in enumerate(streams[:at_once])}
    return_when = asyncio.FIRST_EXCEPTION
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=return_when)
            return_when = asyncio.FIRST_COMPLETED
            arrived = sorted((pending.pop(task), task) for task in done)
            # Retrieve all exceptions before raising the first: asyncio reports those never retrieved.
            if failures := [failure for _, task in arrived if (failure := task.exception())]:
                raise failures[0]
            tokens = [(index, token) for index, task in arrived if (token := task.result()) is not None]
            ended = len(arrived) - len(tokens)
            started = [waiting.popleft() for _ in range(min(ended, len(waiting)))]
            for index in (*(index for index, _ in tokens), *started):
                pending[asyncio.create_task(advance(streams[index]))] = index
            for index, token in tokens:
                yield index, token
    finally:
        # Shielded: after a cancellation the streams must be closed when this generator ends.
        with anyio.CancelScope(shield=True):
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for stream in streams:
                await stream.aclose()


async def iterate_single(stream: AsyncGenerator[Token, None]) -> AsyncGenerator[ChoiceToken, None]:
    try:
        async for token in stream:
            yield 0, token
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


def find_decoding_field(request: GenerateRequest, grounding: bool) -> str | None:
    """Find the first set field that acts on tokens while they are decoded, which a strategy's own answer has not."""
    sampling = request.sampling
    is_set = {
        "continue_final_message": bool(request.continued_text),
        "response_format": sampling.grammar is not None,
        "decoding.grounding": grounding,
        "logit_bias": bool(sampling.logit_bias),
        "stop": bool(sampling.stop),
        "stop_token_ids": bool(sampling.stop_token_ids),
        "min_tokens": sampling.min_tokens > 1,
        "ignore_eos": sampling.ignore_eos,
        "repetition_penalty": sampling.repetition_penalty != 1,
        "presence_penalty": sampling.presence_penalty != 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
    }
    return next((field for field, value in is_set.items() if value), None)


def offset_seed(outcome: Outcome, choice: int) -> Outcome:
    """Add the choice's index to the seed, so that choices differ and can be reproduced."""
    from decoding.pipeline.draft_runner import as_request

    request = as_request(outcome)
    if isinstance(outcome, Answer) or request is None or request.sampling.seed is None:
        return outcome
    return outcome.replace(sampling=replace(request.sampling, seed=(request.sampling.seed + choice) % (1 << 63)))


def wait_in_full_queue(outcome: Outcome) -> Outcome:
    """Let a choice that starts later wait in a full queue, because its request has been accepted."""
    return outcome if isinstance(outcome, Answer) else outcome.replace(bypasses_queue_limit=True)


def select_slowest(usages: Sequence[Usage]) -> dict[str, float]:
    """Take the slowest choice of each phase."""
    phases = {phase for usage in usages for phase in usage.seconds}
    return {phase: max(usage.seconds.get(phase, 0.0) for usage in usages) for phase in sorted(phases)}


def round_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(value, 6) for phase, value in seconds.items()}
