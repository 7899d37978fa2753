"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from decoding.answer import Token
from decoding.ask import Ask
from decoding.errors import BadRequest
from server import doors, response_format
from server.chat_request import ChatRequest, parse
from server.completion import Completion, Letterhead, to_json
from server.deadline import until
from server.disconnect import ClientGone, while_connected
from server.errors import WrongMediaType
from server.messages import to_prompt
from server.reply import Reply
from server.service import Service, TheService
from server.stream import StreamedReply

router = APIRouter()
log = structlog.get_logger("onlyseen.server")

CLIENT_GONE = 499  # nobody reads it but the log

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Completion,
        "description": "The whole answer; with `stream`, the same in chunks.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post("/v1/chat/completions", responses=RESPONSES, response_class=Response)
async def create_chat_completion(request: Request, service: TheService) -> Response:
    """Answer a conversation with pictures. `decoding` chooses the strategy; `onlyseen` in the answer says what ran."""
    try:
        body = await json_body(request)
        return await while_connected(request, answered(await run_sync(parse, body), service, request))
    except (ClientGone, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)


async def json_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WrongMediaType("Content-Type must be application/json.")
    return await request.body()


async def answered(chat: ChatRequest, service: Service, request: Request) -> Response:
    """The response to send: a whole answer, or a stream whose first token is there."""
    head = Letterhead(chat.model, logprobs=chat.wants_logprobs, grounding=chat.wants_grounding, trace=chat.wants_trace)
    async with AsyncExitStack() as held:
        deadline = asyncio.get_running_loop().time() + service.settings.request_timeout
        async with until(deadline):
            reply = await begun(chat, service, deadline)
            held.push_async_callback(reply.close)
            await reply.begin()
        if chat.stream:
            held.pop_all()  # the response closes the reply
            return StreamedReply(reply, head, include_usage=chat.wants_usage)
        completion = await whole(reply, head)
    return Response(to_json(completion), media_type="application/json")


async def begun(chat: ChatRequest, service: Service, deadline: float) -> Reply:
    settings, engine = service.settings, service.ready_engine
    stack = doors.chosen(chat.model, chat.decoding, settings.name, settings.strategy)
    grammar = await response_format.grammar(chat.response_format, engine)
    prompt = await to_prompt(chat.messages, service.pictures, settings.max_images)
    if chat.wants_grounding and not prompt.pictures:
        raise BadRequest("Grounding needs a picture: add an image_url part.", param="decoding.grounding")
    strategy = "+".join(strategy.name for strategy in stack)
    log.info(
        "asked",
        strategy=strategy,
        pictures=len(prompt.pictures),
        choices=chat.choices,
        user=chat.user,
    )
    ask = Ask(prompt, replace(chat.sampling(engine.card.context), grammar=grammar))
    run, watch = service.run(stack), service.metrics.watch(strategy)
    return Reply(
        run,
        ask,
        choices=chat.choices,
        grounding=chat.wants_grounding,
        trace=chat.wants_trace,
        watch=watch,
        deadline=deadline,
        most_rows=settings.max_rows,
    )


async def whole(reply: Reply, head: Letterhead) -> Completion:
    said: list[list[Token]] = [[] for _ in range(reply.choices)]
    async for choice, token in reply.tokens():
        said[choice].append(token)
    choices = [head.choice(index, tokens, reply.ends[index].reason) for index, tokens in enumerate(said)]
    return head.completion(choices, reply.usage, reply.receipt)
