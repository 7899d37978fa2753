"""POST /v1/completions: the route and its responses, which are the openai package's types with the receipt."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from time import time
from typing import Any
from uuid import uuid4

import orjson
from fastapi import APIRouter, Request
from openai.types import Completion, CompletionChoice
from openai.types.completion_usage import CompletionUsage
from pydantic_core import to_json
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from decoding.outputs import FinishInfo, Token, Usage
from server.errors import ErrorResponse
from server.schemas.completion_request import parse_completion_request
from server.schemas.prompt_logprobs import (
    CompletionLogprobs,
    PromptLogprobList,
    PromptLogprobsField,
    build_echoed_logprobs,
    dump_prompt_logprobs,
)
from server.schemas.response import (
    DONE,
    Receipt,
    build_event,
    build_openapi_responses,
    dump_json,
    get_chosen_logprob,
    get_finite_logprob,
    has_logprob,
    join_entries,
    to_completion_usage,
    to_json_fields,
)
from server.serving.admission import AdmissionDep
from server.serving.generation import Generation
from server.serving.request_handler import ParsedRequest, respond


class TextCompletionChoice(CompletionChoice):
    """One continuation of a text."""

    finish_reason: str | None = None  # type: ignore[assignment]
    """null on every chunk of a choice but the last."""
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobList | None = PromptLogprobsField


class TextCompletionResponse(Completion):
    """A full response or a chunk. The last chunk has the receipt."""

    choices: list[TextCompletionChoice]  # type: ignore[assignment]
    onlyseen: Receipt | None = None


router = APIRouter()


@router.post("/v1/completions", responses=build_openapi_responses(TextCompletionResponse), response_class=Response)
async def create_completion(request: Request, admission: AdmissionDep) -> Response:
    """Continue a text, without the model's chat template and without images."""
    return await respond(request, admission, parse_body)


def parse_body(body: dict[str, Any]) -> ParsedRequest:
    """Validate a body and build its formatter, or raise BadRequest for the first error."""
    completion = parse_completion_request(body)
    formatter = CompletionFormatter(
        completion.model,
        completion.logprobs is not None,
        completion.wants_stream_usage,
        completion.wants_continuous_usage,
        completion.echoed_prompts,
        has_answer=completion.max_tokens != 0,
        echoed_logprobs=completion.echoed_logprobs,
        prompt_logprobs=completion.prompt_logprobs,
    )
    return ParsedRequest(completion.normalize(), formatter, bool(completion.stream))


@dataclass(frozen=True, slots=True)
class CompletionFormatter:
    """Writes the responses of `/v1/completions`."""

    model: str
    logprobs: bool
    include_usage: bool
    continuous_usage: bool
    echoed_prompts: tuple[str, ...] = ()  # of each choice; empty without echo
    has_answer: bool = True  # whether the response has the generated tokens
    echoed_logprobs: int | None = None  # likeliest tokens beside each token of the echoed prompts
    prompt_logprobs: int | None = None  # the same, for the field of this name
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time()))

    async def format_full(self, generation: Generation) -> bytes:
        texts = [[self._get_echo(choice)] for choice in range(generation.choices)]
        offsets = [0] * generation.choices
        logprobs = [LogprobLists() for _ in range(generation.choices)]
        for choice, echoed in enumerate(await self._format_echoes(generation)):
            logprobs[choice].add(echoed)
            offsets[choice] = len(self._get_echo(choice))
        async for choice, token in generation.stream_tokens():
            texts[choice].append(token.text if self.has_answer else "")
            if self._has_logprobs:
                logprobs[choice].add(format_logprobs([token], offsets[choice]))
            offsets[choice] += len(token.text)
        choices = [
            TextCompletionChoice(
                index=index,
                text="".join(text),
                logprobs=None,
                finish_reason=self._get_finish_reason(generation.finish_infos[index]),
            )
            for index, text in enumerate(texts)
        ]
        document = self._build_document(*choices)
        document.usage, document.onlyseen = self._get_usage(generation.usage), generation.receipt
        fields = to_json_fields(document)
        if self.logprobs:
            for choice_fields, lists in zip(fields["choices"], logprobs, strict=True):
                choice_fields["logprobs"] = lists.to_json_fields()
        if self.prompt_logprobs is not None:
            dumped = await generation.format_prompts(partial(dump_prompt_logprobs, count=self.prompt_logprobs))
            for choice_fields, prompt_logprobs in zip(fields["choices"], dumped, strict=True):
                choice_fields["prompt_logprobs"] = prompt_logprobs
        return orjson.dumps(fields)

    async def stream_events(self, generation: Generation) -> AsyncGenerator[ServerSentEvent, None]:
        offsets: dict[int, int] = {}  # characters sent of each choice
        echoes = await self._format_echoes(generation)
        async for choice, token in generation.stream_tokens():
            if not self.has_answer:
                token = replace(token, text="")
            if choice not in offsets and (echo := self._get_echo(choice)):
                yield build_event(dump_json(self._build_echo_chunk(choice, echo, echoes[choice] if echoes else None)))
                offsets[choice] = len(echo)
            chunk = self._build_document(self._build_choice(choice, [token], offsets.get(choice, 0)))
            offsets[choice] = offsets.get(choice, 0) + len(token.text)
            if self.include_usage:
                chunk.usage = self._get_usage(generation.usage_so_far) if self.continuous_usage else None
            elif generation.is_finished:
                chunk.onlyseen = generation.receipt
            if token.text or token.finish or (self._has_logprobs and has_logprob(token)):
                yield build_event(dump_json(chunk))
        if self.include_usage:
            last = self._build_document()
            last.usage, last.onlyseen = self._get_usage(generation.usage), generation.receipt
            yield build_event(dump_json(last))
        yield build_event(DONE)

    def format_error(self, error: ErrorResponse) -> ServerSentEvent:
        return build_event(error.to_json(), "error")

    def _get_echo(self, choice: int) -> str:
        return self.echoed_prompts[choice] if self.echoed_prompts else ""

    def _get_finish_reason(self, finish: FinishInfo) -> str:
        return finish.reason if self.has_answer else "length"

    def _get_usage(self, usage: Usage) -> CompletionUsage:
        return to_completion_usage(usage if self.has_answer else replace(usage, completion_tokens=0))

    async def _format_echoes(self, generation: Generation) -> list[CompletionLogprobs]:
        """Format the log-probabilities of the echoed prompt of each choice; none if the request has none."""
        if self.echoed_logprobs is None:
            return []
        return await generation.format_prompts(partial(build_echoed_logprobs, count=self.echoed_logprobs))

    @property
    def _has_logprobs(self) -> bool:
        """Whether the response has the log-probabilities of generated tokens."""
        return self.logprobs and self.has_answer

    def _build_echo_chunk(self, index: int, echo: str, logprobs: CompletionLogprobs | None) -> TextCompletionResponse:
        choice = TextCompletionChoice(index=index, text=echo, logprobs=logprobs, finish_reason=None)
        chunk = self._build_document(choice)
        if self.include_usage:
            chunk.usage = None
        return chunk

    def _build_document(self, *choices: TextCompletionChoice) -> TextCompletionResponse:
        return TextCompletionResponse(
            id=self.id, object="text_completion", created=self.created, model=self.model, choices=list(choices)
        )

    def _build_choice(self, index: int, tokens: list[Token], offset: int) -> TextCompletionChoice:
        """Build a choice of a full response or of a chunk.

        Args:
            index: Index of the choice.
            tokens: Its tokens, or the chunk's.
            offset: The number of characters that earlier chunks of the choice have.

        Returns:
            The choice.
        """
        finish = tokens[-1].finish
        return TextCompletionChoice(
            index=index,
            text="".join(token.text for token in tokens),
            logprobs=format_logprobs(tokens, offset) if self._has_logprobs else None,
            finish_reason=self._get_finish_reason(finish) if finish else None,
        )


class LogprobLists:
    """OpenAI's parallel lists of log-probabilities for a full response, as JSON, to which tokens are added."""

    def __init__(self) -> None:
        self._lists: dict[str, list[bytes]] = {name: [] for name in CompletionLogprobs.model_fields}

    def add(self, logprobs: CompletionLogprobs) -> None:
        """Add the lists of further tokens."""
        for name, items in self._lists.items():
            items += map(to_json, getattr(logprobs, name))  # orjson.dumps would return 4 kB for each

    def to_json_fields(self) -> dict[str, orjson.Fragment]:
        """Return the lists by name."""
        return {name: join_entries(items) for name, items in self._lists.items()}


def format_logprobs(tokens: list[Token], offset: int) -> CompletionLogprobs:
    """Format log-probabilities as OpenAI's parallel lists, without an end token that is not part of the answer."""
    offsets = accumulate((len(token.text) for token in tokens), initial=offset)
    entries = [
        (get_chosen_logprob(token), token.top, text_offset)
        for token, text_offset in zip(tokens, offsets, strict=False)
        if has_logprob(token)
    ]
    return CompletionLogprobs(
        tokens=[chosen.text for chosen, _, _ in entries],
        token_logprobs=[get_finite_logprob(chosen) for chosen, _, _ in entries],
        top_logprobs=[
            {candidate.text: get_finite_logprob(candidate) for candidate in (*top, chosen)}
            for chosen, top, _ in entries
        ],
        text_offset=[text_offset for _, _, text_offset in entries],
    )
