"""HTTP client of an OpenAI-compatible server, with retries and strict checks of every completion."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, Field, FiniteFloat, JsonValue, ValidationError
from pydantic_core import from_json
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from eval.core.answer_store import ReceivedReceipt, StoredAnswer
from eval.core.yes_score import ListedTokens, YesScore, compute_yes_score
from eval.errors import InvalidResponse, RequestRejected, ServerError, ServerUnavailable
from eval.runs.request import EvalRequest, StrategyVia
from eval.runs.strategy_catalog import StrategyCatalog, parse_catalog

RETRIED_STATUSES = frozenset({408, 409, 425, 429})  # and all from 500 on
MAX_WAIT = 60.0  # seconds between two attempts, even if Retry-After is longer
MAX_MESSAGE_LENGTH = 300  # characters of a server's message in an error
MAX_RESPONSE_BYTES = 64_000_000  # decoded; also an endless or highly compressed body ends here
SESSION_HEADER = "x-session-id"
FINISH_REASONS = frozenset({None, "stop", "length"})


@dataclass
class EvalClient:
    """A client of one server, to be used as an async context manager.

    Attributes:
        base_url: Address of the server, with or without /v1.
        api_key: Sent as a bearer token.
        timeout: Seconds from the first byte of a request to the last one of its response.
        attempts: Attempts of one request.
        retry_pause: Seconds before the second attempt. The pause doubles, with jitter.
        connections: Maximum number of connections.
        transport: Replaces the network, for an application in this process.
    """

    base_url: str
    api_key: str | None = None
    timeout: float = 300.0
    attempts: int = 6
    retry_pause: float = 0.5
    connections: int = 8
    transport: httpx.AsyncBaseTransport | None = None
    http: httpx.AsyncClient = field(init=False)

    async def __aenter__(self) -> Self:
        headers = {"accept-encoding": "identity"}  # a compressed body has no bound until it is in memory
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        self.http = httpx.AsyncClient(
            base_url=build_api_root(self.base_url),
            headers=headers,
            timeout=httpx.Timeout(self.timeout, connect=min(10.0, self.timeout)),
            limits=httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections),
            transport=self.transport,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def list_models(self) -> dict[str, str | None]:
        """List the models of the server.

        Returns:
            Name to fingerprint of the weights, None if the server reports none. Empty if it does not list models.

        Raises:
            RequestRejected: The server rejects the request, for example without an API key.
        """
        try:
            document = await self._send_with_retries("GET", "models")
        except RequestRejected as rejection:
            if rejection.status in {404, 405}:
                return {}
            raise
        models = document.get("data")
        if not isinstance(models, list):
            return {}
        named = [each for each in models if isinstance(each, dict) and isinstance(each.get("id"), str)]
        return {each["id"]: each.get("fingerprint") for each in named}

    async def fetch_catalog(self) -> StrategyCatalog | None:
        """Fetch the strategies of the server.

        Returns:
            The catalog, or None if the server has no /v1/strategies.

        Raises:
            RequestRejected: The server rejects the request, for example without an API key.
        """
        try:
            return parse_catalog(await self._send_with_retries("GET", "strategies"))
        except RequestRejected as rejection:
            if rejection.status in {404, 405}:
                return None
            raise

    async def complete(self, request: EvalRequest, strategy_via: StrategyVia) -> StoredAnswer:
        """Send a request until it has an answer.

        `RequestRejected` is raised at once, `ServerUnavailable` after the last attempt.

        Args:
            request: The request.
            strategy_via: How the request selects its strategy.

        Returns:
            The answer.

        Raises:
            AssertionError: Never; the retry loop ends by returning or raising.
        """
        body = request.build_body(strategy_via)
        # Balancers that read the header send all questions about an image to the server that has it in its caches.
        image_hash = request.question.image_hash
        headers = {SESSION_HEADER: image_hash} if image_hash else {}
        async for attempt in self._build_retrying():
            with attempt:
                start = time.perf_counter()
                document = await self._send("POST", "chat/completions", body, headers)
                seconds = time.perf_counter() - start
                return parse_answer(document, request, strategy_via, seconds, attempt.retry_state.attempt_number)
        raise AssertionError("tenacity ends by a return or by raising")

    async def _send_with_retries(self, method: str, path: str) -> dict[str, Any]:
        async for attempt in self._build_retrying():
            with attempt:
                return await self._send(method, path)
        raise AssertionError("tenacity ends by a return or by raising")

    def _build_retrying(self) -> AsyncRetrying:
        backoff = wait_random_exponential(multiplier=self.retry_pause, max=MAX_WAIT / 2)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            retry_after = error.retry_after if isinstance(error, ServerUnavailable) else 0.0
            return max(min(retry_after, MAX_WAIT), backoff(state))

        return AsyncRetrying(
            retry=retry_if_exception_type(ServerUnavailable),
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            reraise=True,
        )

    async def _send(
        self, method: str, path: str, body: dict[str, JsonValue] | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            # The timeouts of httpx hold for each read, and a server may send single bytes without end.
            async with (
                asyncio.timeout(self.timeout),
                self.http.stream(method, path, json=body, headers=headers) as stream,
            ):
                response = await read_bounded(stream)
        except (httpx.TimeoutException, TimeoutError):
            raise ServerUnavailable(f"no response from {self.base_url} within {self.timeout:g} s") from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnavailable(f"no connection to {self.base_url} ({reason}). Is the server running?") from None
        if response.status_code in RETRIED_STATUSES or response.status_code >= 500:
            problem = f"the server fails with status {response.status_code}: {_format_error_message(response)}"
            retry_after = _parse_retry_after(response.headers.get("retry-after"))
            raise ServerUnavailable(problem, retry_after, response.status_code)
        if not response.is_success:
            raise RequestRejected(response.status_code, _format_error_message(response), _find_error_param(response))
        try:
            # Unlike `json`, this parser rejects lone surrogates, which no file can hold, and deeply nested values.
            document = from_json(response.content)
        except ValueError as error:
            problem = f"the response is not JSON ({error}): {_decode_body(response)[:MAX_MESSAGE_LENGTH]!r}"
            raise InvalidResponse(problem) from None
        if not isinstance(document, dict):
            raise InvalidResponse("the response is not a JSON object")
        return document


async def read_bounded(stream: httpx.Response) -> httpx.Response:
    """Read a streamed response of at most `MAX_RESPONSE_BYTES`.

    Args:
        stream: The response, of which only the head has arrived.

    Returns:
        The response with its body. That of a compressed error is empty, so that its status and headers still count.

    Raises:
        InvalidResponse: The body is larger, or compressed, which the client does not accept.
    """
    if stream.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        if not stream.is_success:
            headers = [(name, value) for name, value in stream.headers.multi_items() if name != "content-encoding"]
            return httpx.Response(stream.status_code, headers=headers)
        raise InvalidResponse("the response is compressed, although the request does not accept that")
    content = bytearray()
    async for part in stream.aiter_bytes(1 << 16):
        content += part
        if len(content) > MAX_RESPONSE_BYTES:
            raise InvalidResponse(f"the response is larger than {MAX_RESPONSE_BYTES // 1_000_000} MB")
    return httpx.Response(stream.status_code, headers=stream.headers, content=bytes(content))


def build_api_root(url: str) -> str:
    """Normalize the address of a server, so that `http://host:8000` and `http://host:8000/v1` are equal.

    Args:
        url: The address.

    Returns:
        The address with /v1 and without a slash at the end.

    Raises:
        ServerError: The address is not an HTTP URL.
    """
    if not url.startswith(("http://", "https://")):
        raise ServerError(f"--base-url must begin with http:// or https://, and '{url}' does not.")
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def _format_error_message(response: httpx.Response) -> str:
    """Return the message of OpenAI's error body, or the beginning of any other body."""
    try:
        return str(from_json(response.content)["error"]["message"])[:MAX_MESSAGE_LENGTH]
    except (ValueError, KeyError, TypeError):
        return _decode_body(response)[:MAX_MESSAGE_LENGTH].strip() or response.reason_phrase


def _find_error_param(response: httpx.Response) -> str | None:
    """Return the field that OpenAI's error body names."""
    try:
        param = from_json(response.content)["error"]["param"]
    except (ValueError, KeyError, TypeError):
        return None
    return param if isinstance(param, str) else None


def _decode_body(response: httpx.Response) -> str:
    """Decode a body as UTF-8. The charset of the header may be one that yields lone surrogates or no text."""
    return response.content.decode(errors="replace")


def _parse_retry_after(header: str | None) -> float:
    try:
        seconds = float(header or 0)
    except ValueError:  # The header may be a date.
        return 0.0
    return 0.0 if math.isnan(seconds) else max(seconds, 0.0)


class ResponseMessage(BaseModel):
    """The `message` of a choice."""

    content: str


class ReceivedAlternative(BaseModel, strict=True):
    """An element of `top_logprobs`."""

    token: str
    logprob: FiniteFloat


class ReceivedLogprob(BaseModel, strict=True):
    """An element of `logprobs.content`."""

    token: str
    logprob: FiniteFloat
    grounding: FiniteFloat | None = None
    top_logprobs: list[ReceivedAlternative] | None = None


class ChoiceLogprobs(BaseModel):
    """The `logprobs` of a choice."""

    content: list[ReceivedLogprob] | None = None


class ResponseChoice(BaseModel):
    """An element of `choices`."""

    message: ResponseMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class ResponseUsage(BaseModel):
    """The `usage` of a completion."""

    completion_tokens: int | None = None


class ResponseReceipt(ReceivedReceipt):
    """The `onlyseen` object of a completion."""

    strategy: str
    parameters: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)


class CompletionResponse(BaseModel):
    """The fields of a chat completion that the evaluation needs."""

    choices: list[ResponseChoice] = Field(min_length=1)
    usage: ResponseUsage | None = None
    onlyseen: ResponseReceipt | None = None


def parse_answer(
    document: dict[str, Any], request: EvalRequest, strategy_via: StrategyVia, seconds: float, attempts: int
) -> StoredAnswer:
    """Check a completion and convert it to an answer.

    Args:
        document: The JSON of the response.
        request: The request.
        strategy_via: How the request selected its strategy. With `none` no receipt is required.
        seconds: Wall-clock time of the request.
        attempts: Number of the attempt.

    Returns:
        The answer.

    Raises:
        InvalidResponse: A field is missing, a number is not finite, the text is empty and no token was generated, the
            finish reason is not `stop` or `length`, or the receipt names another strategy or parameter.
    """
    try:
        completion = CompletionResponse.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidResponse(f'the completion cannot be read: field "{place}": {first["msg"]}') from None
    choice = completion.choices[0]
    tokens = completion.usage.completion_tokens if completion.usage else None
    if choice.finish_reason not in FINISH_REASONS:
        raise InvalidResponse(f"the completion has finish_reason {choice.finish_reason!r}")
    # Those of sentences that `verify` has dropped count. `steps` are the tokens of the answer.
    passes = completion.onlyseen.forward_passes if completion.onlyseen else 0
    if not choice.message.content.strip() and not tokens and not passes:
        raise InvalidResponse("the answer is empty, and no token was generated for it")
    has_claims = completion.onlyseen is not None and completion.onlyseen.claims is not None
    if request.check and not (has_claims and (choice.logprobs or not request.token_scores)):
        raise InvalidResponse("the claims of the answer were not checked: receipt.claims or logprobs are missing")
    if strategy_via != "none":
        _check_receipt(completion.onlyseen, request)
    return StoredAnswer(
        key=request.key,
        question=request.question.id,
        strategy=request.spec.label,
        seed=request.seed,
        text=choice.message.content,
        finish=choice.finish_reason,
        tokens=tokens,
        seconds=round(seconds, 6),
        attempts=attempts,
        receipt=document.get("onlyseen"),
        token_scores=[(each.token, each.logprob, each.grounding) for each in choice.logprobs.content or ()]
        if request.check and choice.logprobs
        else None,
        yes_score=_read_yes_score(choice.logprobs)
        if request.yes_score and choice.logprobs and choice.logprobs.content
        else None,
    )


def _read_yes_score(logprobs: ChoiceLogprobs) -> YesScore:
    return compute_yes_score(
        [
            ListedTokens(each.token, [(other.token, other.logprob) for other in each.top_logprobs or ()])
            for each in logprobs.content or ()
        ]
    )


def _check_receipt(receipt: ResponseReceipt | None, request: EvalRequest) -> None:
    if receipt is None:
        raise InvalidResponse("the completion has no receipt, so its strategy is unknown")
    if receipt.strategy != request.spec.name:
        raise InvalidResponse(f"requested strategy {request.spec.name}, the receipt has {receipt.strategy}")
    for strategy, values in request.full_spec.parameters.items():
        for name, value in values.items():
            if (applied := receipt.parameters.get(strategy, {}).get(name)) != value:
                raise InvalidResponse(f"requested {strategy}.{name} = {value}, the receipt has {applied}")
