"""Talks to an OpenAI-compatible server: what it has, and what it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import JsonValue
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from eval.catalogue import Catalogue, catalogue
from eval.completion import answer_of
from eval.errors import Nonsense, Refused, ServerError, Unavailable
from eval.request import Request
from eval.store import Answer

RETRIED = frozenset({408, 409, 425, 429})  # and all from 500 on
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After says
SHOWN = 300  # characters of a server's message


@dataclass
class Client:
    base_url: str
    api_key: str | None = None
    timeout: float = 300.0  # seconds for one answer
    attempts: int = 6
    pause: float = 0.5  # seconds before the second attempt; doubles, with jitter
    connections: int = 8
    http: httpx.AsyncClient = field(init=False)

    async def __aenter__(self) -> Self:
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        self.http = httpx.AsyncClient(
            base_url=api_root(self.base_url),
            headers=headers,
            timeout=httpx.Timeout(self.timeout, connect=min(10.0, self.timeout)),
            limits=httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.aclose()

    async def models(self) -> dict[str, str | None]:
        """Names, and where the server tells it what their weights are; none where it does not list them."""
        try:
            document = await self._patiently("GET", "models")
        except Refused as refusal:
            if refusal.status in {404, 405}:
                return {}
            raise
        listed = document.get("data") or []
        return {each["id"]: each.get("fingerprint") for each in listed if isinstance(each, dict) and "id" in each}

    async def catalogue(self) -> Catalogue | None:
        """None for a server of another kind."""
        try:
            return catalogue(await self._patiently("GET", "strategies"))
        except Refused as refusal:
            if refusal.status in {404, 405}:
                return None
            raise

    async def ask(self, request: Request, door: str) -> Answer:
        """Raises: Refused; Unavailable: after the last attempt."""
        body = request.body(door)
        async for attempt in self._attempts():
            with attempt:
                began = time.perf_counter()
                document = await self._send("POST", "chat/completions", body)
                return answer_of(
                    document, request, door, time.perf_counter() - began, attempt.retry_state.attempt_number
                )
        raise AssertionError("tenacity ends by a return or by raising")

    async def _patiently(self, method: str, path: str) -> dict[str, Any]:
        async for attempt in self._attempts():
            with attempt:
                return await self._send(method, path)
        raise AssertionError("tenacity ends by a return or by raising")

    def _attempts(self) -> AsyncRetrying:
        backoff = wait_random_exponential(multiplier=self.pause, max=LONGEST_WAIT / 2)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, Unavailable) else 0.0
            return max(min(asked, LONGEST_WAIT), backoff(state))

        return AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            reraise=True,
        )

    async def _send(self, method: str, path: str, body: dict[str, JsonValue] | None = None) -> dict[str, Any]:
        try:
            response = await self.http.request(method, path, json=body)
        except httpx.TimeoutException:
            raise Unavailable(f"no answer from {self.base_url} within {self.timeout:g} s") from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"no connection to {self.base_url} ({reason}): is the server running?") from None
        if response.status_code in RETRIED or response.status_code >= 500:
            problem = f"the server fails with {response.status_code}: {message_of(response)}"
            raise Unavailable(problem, seconds_of(response.headers.get("retry-after")))
        if not response.is_success:
            raise Refused(response.status_code, message_of(response))
        try:
            document = response.json()
        except ValueError:
            raise Nonsense(f"the server answers with no JSON: {response.text[:SHOWN]!r}") from None
        if not isinstance(document, dict):
            raise Nonsense("the server answers with JSON that is no object")
        return document


def api_root(url: str) -> str:
    """`http://host:8000` and `http://host:8000/v1` are the same server."""
    if not url.startswith(("http://", "https://")):
        raise ServerError(f"--base-url must begin with http:// or https://, and '{url}' does not.")
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def message_of(response: httpx.Response) -> str:
    """OpenAI's error body, or the beginning of whatever came."""
    try:
        return str(response.json()["error"]["message"])[:SHOWN]
    except (ValueError, KeyError, TypeError):
        return response.text[:SHOWN].strip() or response.reason_phrase


def seconds_of(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:  # a date
        return 0.0
