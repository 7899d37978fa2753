"""What all routes that generate have in common: from the body to a reply, and from the reply to a response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog
from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from decoding.answer import Token
from decoding.ask import Ask
from decoding.errors import BadRequest
from server import doors, response_format
from server.deadline import until
from server.disconnect import ClientGone, while_connected
from server.errors import WrongMediaType
from server.letter import Letter
from server.question import Question
from server.reply import Reply
from server.service import Service
from server.stream import StreamedReply

log = structlog.get_logger("onlyseen.server")

CLIENT_GONE = 499  # nobody reads it but the log


@dataclass(frozen=True, slots=True)
class Asked:
    question: Question
    letter: Letter
    streams: bool


Read = Callable[[bytes], Asked]  # raises BadRequest


async def respond(request: Request, service: Service, read: Read) -> Response:
    """A whole answer, or a stream whose first token is there."""
    try:
        body = await json_body(request)
        asked = await run_sync(read, body, limiter=service.readers)
        return await while_connected(request, streamed(asked, service) if asked.streams else answered(asked, service))
    except (ClientGone, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)


async def json_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WrongMediaType("Content-Type must be application/json.")
    return await request.body()


async def answered(asked: Asked, service: Service) -> Response:
    return Response(await written(asked, service), media_type="application/json")


async def written(asked: Asked, service: Service) -> str:
    """The whole answer as JSON."""
    reply = await begun(asked.question, service)
    try:
        said: list[list[Token]] = [[] for _ in range(reply.choices)]
        async for choice, token in reply.tokens():
            said[choice].append(token)
        return asked.letter.whole(said, reply)
    finally:
        await reply.close()


async def streamed(asked: Asked, service: Service) -> Response:
    return StreamedReply(await begun(asked.question, service), asked.letter)


async def begun(question: Question, service: Service) -> Reply:
    """A reply whose first token is there. Whoever takes it closes it."""
    deadline = asyncio.get_running_loop().time() + service.settings.request_timeout
    async with until(deadline):
        with question.fields_as_sent():
            reply = await reply_to(question, service, deadline)
            try:
                await reply.begin()
            except BaseException:
                await reply.close()
                raise
    return reply


async def reply_to(question: Question, service: Service, deadline: float) -> Reply:
    settings, engine, decoding = service.settings, service.ready_engine, question.decoding
    stack = doors.chosen(question.model, decoding, settings.name, settings.strategy)
    grammar = await response_format.grammar(question.format, engine, question.format_param)
    prompts = await question.prompts(service.pictures, settings.max_images)
    pictures = sum(len(prompt.pictures) for prompt in prompts)
    if decoding.grounding and not pictures:
        raise BadRequest("Grounding needs a picture: add an image_url part.", param="decoding.grounding")
    strategy = "+".join(strategy.name for strategy in stack)
    log.info("asked", strategy=strategy, pictures=pictures, choices=question.choices, user=question.user)
    most = question.sampling.max_tokens
    most = None if most is None else min(most, engine.card.context)
    sampling = replace(question.sampling, max_tokens=most, grammar=grammar)
    return Reply(
        service.run(stack),
        [Ask(prompt, sampling) for prompt in prompts],
        each=question.choices,
        grounding=bool(decoding.grounding),
        trace=bool(decoding.trace),
        watch=service.metrics.watch(strategy),
        deadline=deadline,
        most_rows=settings.rows,
    )
