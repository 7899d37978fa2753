"""From the body of a request to its response, for every route that generates."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
import structlog
from anyio.to_thread import run_sync
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from decoding.engine import Engine
from decoding.errors import BadRequest, StrategyFailed, Unsupported
from decoding.prompt import Message, Prompt
from decoding.requests import GenerateRequest
from decoding.sampling_params import Grammar
from server.disconnect import run_until_disconnect
from server.errors import ErrorResponse, build_error_response
from server.media.image_memory import ImageLease
from server.media.image_ref import ImageRef
from server.media.images import ImageLoader
from server.middleware.body_budget import BodyBuffer
from server.observability.metrics import Metrics
from server.observability.refusals import report_error
from server.schemas.base import parse_json
from server.schemas.normalized_request import NormalizedRequest
from server.service import LARGE_BODY_BYTES, Service
from server.serving.admission import Admission
from server.serving.batch_line_admission import BatchLineAdmission
from server.serving.generation import Generation, enforce_timeout
from server.serving.strategy_selection import resolve_check, resolve_stack

if TYPE_CHECKING:
    from decoding.strategy import Strategy

log = structlog.get_logger("onlyseen.server")

T = TypeVar("T")

PING_INTERVAL = 15  # seconds of silence before a comment that keeps proxies from closing the connection
SEND_TIMEOUT = 60  # seconds that a client may take to read one event


class ResponseFormatter(Protocol):
    """Writes the responses of one route, for one request."""

    async def format_full(self, generation: Generation) -> bytes:
        """Write the full response as JSON, when all tokens of the generation have arrived.

        Log-probabilities are formatted token by token, because those of a long answer take seconds.
        """
        ...

    def stream_events(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        """Write the response as server-sent events while the tokens arrive."""
        ...

    def format_error(self, error: ErrorResponse) -> ServerSentEvent:
        """Write the last event of a stream that fails."""
        ...


@dataclass(slots=True)
class ParsedRequest:
    """A validated request of any generating route, with the formatter of its responses."""

    request: NormalizedRequest
    formatter: ResponseFormatter
    stream: bool

    def with_cache_salt(self, cache_salt: str | None) -> ParsedRequest:
        """Return the request with a salt of its own for all caches."""
        return self if cache_salt is None else replace(self, request=replace(self.request, cache_salt=cache_salt))

    def take_request(self) -> NormalizedRequest:
        """Return the request and keep its small fields only, so that the data URLs of its images can be freed."""
        request, self.request = self.request, self.request.without_prompt()
        return request


BodyParser = Callable[[dict[str, Any]], ParsedRequest]  # raises BadRequest


async def respond(http_request: Request, admission: Admission, parse_body: BodyParser) -> Response:
    """Answer a request with a full response, or with a stream that has its first token."""
    service = admission.service
    parsed = await parse_in_thread(admission.body, parse_body, service)
    parsed = parsed.with_cache_salt(service.build_cache_salt(admission.owner))
    build = build_stream_response if parsed.stream else build_full_response
    return await run_until_disconnect(http_request, build(parsed, admission))


async def parse_in_thread(body: BodyBuffer, parse: Callable[[dict[str, Any]], T], service: Service) -> T:
    """Parse a JSON body in a thread, large bodies one after the other.

    Args:
        body: The body. Its bytes are dropped.
        parse: Validates the parsed JSON.
        service: The server's `Service`.

    Returns:
        The result of `parse`.
    """
    is_large = len(body.content) > LARGE_BODY_BYTES
    limiter = service.large_parse_limiter if is_large else service.parse_limiter
    return await run_sync(parse_body_bytes, body, parse, limiter=limiter)


def parse_body_bytes(body: BodyBuffer, parse: Callable[[dict[str, Any]], T]) -> T:
    try:
        data = parse_json(body.content, body.data_urls)
    finally:
        body.content.clear()
    return parse(data)


async def build_full_response(parsed: ParsedRequest, admission: Admission) -> Response:
    content = await generate_json(parsed, admission.service, admission)
    admission.release_rows()
    return Response(content, media_type="application/json")


async def generate_json(parsed: ParsedRequest, service: Service, admission: Admission | BatchLineAdmission) -> bytes:
    """Generate the full response as JSON."""
    generation = await start_generation(parsed, service, admission)
    try:
        with parsed.request.rename_error_params():
            return await parsed.formatter.format_full(generation)
    finally:
        await generation.close()


async def generate_batch_json(
    parsed: ParsedRequest, service: Service, owner: str, check_batch: Callable[[], Awaitable[None]]
) -> bytes:
    """Generate the full response to a line of a batch, when rows are free for batches and for its key.

    Args:
        parsed: The request of the line.
        service: The server's `Service`.
        owner: Owner of the batch.
        check_batch: Raises an exception if no further line of the batch may start. It is called after each wait.

    Returns:
        The response as JSON. The time limit of the request begins when the line has its rows.
    """
    admission = BatchLineAdmission(service, owner, check_batch)
    try:
        await admission.wait_for_batch_rows(await estimate_line_rows(parsed.request, service, admission.rows_at_once))
        return await generate_json(parsed, service, admission)
    finally:
        await admission.release()


async def estimate_line_rows(request: NormalizedRequest, service: Service, rows_at_once: int) -> int:
    """Estimate the rows of a line before it is prepared. A line with invalid strategies counts as one row."""
    try:
        stack = resolve_stack(request.model, request.decoding, service.model_name, service.settings.strategy)
        check = resolve_check(request.decoding, stack)
    except BadRequest:  # It is refused when it is prepared.
        return 1
    return await estimate_rows(request, service, stack if check is None else (check, *stack), rows_at_once)


async def estimate_rows(
    request: NormalizedRequest, service: Service, strategies: Sequence[Strategy], rows_at_once: int | None
) -> int:
    """Estimate the rows of a request at a time from dry runs of its strategies, a check included."""
    return await service.row_estimator.estimate(
        strategies,
        request.choices * max(1, len(request.texts)),
        grounding=bool(request.decoding.grounding),
        cache_salt=request.cache_salt,
        rows_at_once=rows_at_once,
    )


async def build_stream_response(parsed: ParsedRequest, admission: Admission) -> Response:
    generation = await start_generation(parsed, admission.service, admission)
    return GenerationStreamResponse(generation, parsed, admission.service.metrics)


async def start_generation(
    parsed: ParsedRequest, service: Service, admission: Admission | BatchLineAdmission
) -> Generation:
    """Start a generation and wait for the first token of each choice that runs at once. The caller closes it."""
    request = parsed.take_request()
    with parsed.request.rename_error_params():
        resources = ExitStack()
        async with enforce_timeout(admission.deadline):
            try:
                generation = await prepare_generation(request, service, admission, resources)
            except BaseException:
                resources.close()
                raise
        del request  # the data URLs of its images
        admission.return_body_budget()
        try:
            async with enforce_timeout(admission.deadline):
                await admission.wait(generation.estimate_rows)
            await generation.start(admission.deadline)
        except BaseException:
            await generation.close()
            raise
    return generation


async def prepare_generation(
    request: NormalizedRequest, service: Service, admission: Admission | BatchLineAdmission, resources: ExitStack
) -> Generation:
    """Resolve the strategies, compile the grammar and load the images.

    Args:
        request: The request.
        service: The server's `Service`.
        admission: The admission of the request.
        resources: Releases the memory for the grammar and the images. The generation closes it.

    Returns:
        The generation, not started.

    Raises:
        BadRequest: The request has no image but requires grounding or a check.
        Unsupported: The engine lacks something that the request needs.
    """
    settings, engine, decoding = service.settings, service.ready_engine, request.decoding
    if settings.strict:
        request.reject_ignored()
    stack = resolve_stack(request.model, decoding, service.model_name, settings.strategy)
    check = resolve_check(decoding, stack)
    if request.prompt_logprobs is not None and "prompt_logprobs" not in engine.capabilities:
        raise Unsupported("This engine has no log-probabilities of prompts.", param="prompt_logprobs")
    grammar = await compile_output_format(request, service, admission.owner, resources)
    check_length(request, engine)
    lease = service.image_loader.memory.lease(request.cache_salt)
    resources.callback(lease.release)
    strategies = stack if check is None else (check, *stack)
    num_copies = count_image_copies(strategies)
    prompts = await build_prompts(request, service.image_loader, settings.max_images, lease, num_copies)
    sizes = [image.size for prompt in prompts for image in prompt.images]
    if sizes:
        rows = await estimate_rows(request, service, strategies, admission.rows_at_once)
        images_at_once = num_copies + min(rows, settings.resolved_max_rows)
        pixel_lease = service.pixel_memory.lease(request.cache_salt)
        resources.callback(pixel_lease.release)
        await pixel_lease.reserve(images_at_once * await engine.estimate_pixel_bytes(sizes))
    images = len(sizes)
    if decoding.grounding and not images:
        raise BadRequest("Grounding needs an image: add an image_url part.", param="decoding.grounding")
    if decoding.wants_check and not images:
        raise BadRequest("A check needs an image: add an image_url part.", param="decoding.check")
    strategy = "+".join(strategy.name for strategy in stack)
    log.info("request", strategy=strategy, images=images, choices=request.choices, user=request.user)
    max_tokens = request.sampling.max_tokens
    max_tokens = None if max_tokens is None else min(max_tokens, engine.card.max_model_len)
    sampling = replace(request.sampling, max_tokens=max_tokens, grammar=grammar)
    return Generation(
        service.create_runner(stack, request.cache_salt),
        [GenerateRequest(prompt, sampling, continued_text=request.continued_text) for prompt in prompts],
        choices_per_prompt=request.choices,
        grounding=bool(decoding.grounding),
        check=check,
        trace=bool(decoding.trace),
        ignored=tuple(request.ignored),
        prompt_logprobs=request.prompt_logprobs,
        metrics=service.metrics.track_request(strategy),
        resources=resources,
        max_rows=settings.resolved_max_rows,
        rows_at_once=admission.rows_at_once,
        row_estimator=service.row_estimator,
        work_limiter=service.work_limiter,
    )


def count_image_copies(strategies: Sequence[Strategy]) -> int:
    """Count the copies of each image that strategies keep.

    Returns:
        The copies of all strategies together.

    Raises:
        StrategyFailed: A strategy raised an exception.
    """
    total = 0
    for strategy in strategies:
        try:
            total += strategy.count_image_copies()
        except Exception as error:
            problem = f"failed in `count_image_copies`: {type(error).__name__}"
            raise StrategyFailed(strategy.name, problem) from error
    return total


async def build_prompts(
    request: NormalizedRequest, image_loader: ImageLoader, max_images: int, lease: ImageLease, num_copies: int = 0
) -> list[Prompt]:
    """Load the images of a request and build its prompts.

    Args:
        request: The request.
        image_loader: Loads the images.
        max_images: Most images of a request.
        lease: The memory for the images.
        num_copies: Copies of each image that the strategies keep.

    Returns:
        One prompt for the conversation, or one for each text.

    Raises:
        BadRequest: The request has too many images. The image loader raises it too.
    """
    if request.texts:
        return [Prompt((Message("user", (text,)),), raw_text=True) for text in request.texts]
    refs = [part for message in request.messages for part in message.parts if isinstance(part, ImageRef)]
    if len(refs) > max_images:
        problem = f"The request has {len(refs)} images; the server accepts at most {max_images}."
        raise BadRequest(problem, param=request.prompt_param)
    images = iter(await image_loader.load(refs, lease, request.cache_salt, num_copies))
    loaded = (
        Message(message.role, tuple(next(images) if isinstance(part, ImageRef) else part for part in message.parts))
        for message in request.messages
    )
    return [Prompt(tuple(loaded))]


def check_length(request: NormalizedRequest, engine: Engine) -> None:
    """Refuse a text that cannot fit the context before strategies and the tokenizer work on it.

    Args:
        request: The request.
        engine: The engine.

    Raises:
        BadRequest: The text has more characters than the context can have.
    """
    limit, max_model_len = engine.card.max_characters, engine.card.max_model_len
    if limit is not None and request.count_characters() > limit:
        message = f"The prompt is longer than the model's context of {max_model_len} tokens."
        raise BadRequest(message, param="messages", code="context_length_exceeded")


async def compile_output_format(
    request: NormalizedRequest, service: Service, owner: str, resources: ExitStack
) -> Grammar | None:
    """Compile the format of the answer for `SamplingParams.grammar`.

    Args:
        request: The request.
        service: The server's `Service`.
        owner: Owner of the request.
        resources: Releases the memory for the grammar.

    Returns:
        The grammar, or None for free text.

    Raises:
        Unsupported: The engine has no grammars.
    """
    output_format, engine = request.output_format, service.ready_engine
    if output_format is None:
        return None
    if "grammar" not in engine.capabilities:
        raise Unsupported("This engine cannot enforce a response format.", param=output_format.param)
    return await service.schema_compiler.compile(
        output_format.value,
        output_format.value_param,
        engine,
        owner=owner,
        cache_salt=request.cache_salt,
        resources=resources,
    )


class GenerationStreamResponse(EventSourceResponse):
    """Sends a generation as server-sent events, and closes it when the client disconnects or has read all of it."""

    def __init__(self, generation: Generation, parsed: ParsedRequest, metrics: Metrics) -> None:
        events = stream_events(generation, parsed, metrics)
        super().__init__(events, ping=PING_INTERVAL, sep="\n", send_timeout=SEND_TIMEOUT)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._generation.close()


async def stream_events(
    generation: Generation, parsed: ParsedRequest, metrics: Metrics
) -> AsyncGenerator[ServerSentEvent, None]:
    """Yield the formatter's events. A failure becomes the last event, since the status has been sent."""
    try:
        with parsed.request.rename_error_params():
            async for event in parsed.formatter.stream_events(generation):
                yield event
    except Exception as error:
        response = build_error_response(error)
        report_error(error, response, metrics, prefix="stream")
        yield parsed.formatter.format_error(response)
