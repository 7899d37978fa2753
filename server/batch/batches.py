"""/v1/batches: many requests in one file, answered when there is time."""

from __future__ import annotations

import time
from typing import Annotated, Literal
from uuid import uuid4

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from openai.types import Batch
from pydantic import BaseModel, Field

from decoding.errors import BadRequest
from server.asking import json_body
from server.batch.page import After, Limit, page
from server.batch.store import UNFINISHED
from server.errors import ErrorBody, NotFound
from server.guard import Owner
from server.service import TheService
from server.wire import Wire, read, read_json

router = APIRouter(prefix="/v1/batches", responses={404: {"model": ErrorBody}})

DAY = 24 * 3600


class BatchRequest(Wire):
    input_file_id: str = Field(max_length=64)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None


class BatchList(BaseModel):
    object: str = "list"
    data: list[Batch]
    has_more: bool
    first_id: str | None
    last_id: str | None


@router.post("")
async def create_batch(request: Request, service: TheService, owner: Owner) -> Batch:
    """Each line of the file is one request: `{"custom_id", "method": "POST", "url", "body"}`."""
    asked = await run_sync(parse, await json_body(request))
    try:
        file = await service.store.file(owner, asked.input_file_id)
    except NotFound as missing:
        missing.param = "input_file_id"
        raise
    if file.purpose != "batch":
        raise BadRequest("The file is none of purpose 'batch'.", param="input_file_id")
    now = int(time.time())
    batch = Batch.model_validate(
        {
            "id": f"batch_{uuid4().hex}",
            "object": "batch",
            "endpoint": asked.endpoint,
            "input_file_id": file.id,
            "completion_window": asked.completion_window,
            "status": "validating",
            "created_at": now,
            "expires_at": now + DAY,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": asked.metadata,
        }
    )
    await service.store.add(owner, batch)
    service.batches.wake()
    return batch


@router.get("")
async def list_batches(service: TheService, owner: Owner, limit: Limit = 20, after: After = None) -> BatchList:
    """The newest first."""
    return BatchList.model_validate(page(await service.store.batches(owner), limit, after))


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, service: TheService, owner: Owner) -> Batch:
    return await service.store.batch(owner, batch_id)


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, service: TheService, owner: Owner) -> Batch:
    """What runs is finished, what waits is dropped, what is answered can be fetched."""
    now = int(time.time())
    batch = await service.store.change(owner, batch_id, *UNFINISHED, status="cancelling", cancelling_at=now)
    if batch is None:
        ended = await service.store.batch(owner, batch_id)
        raise BadRequest(f"The batch has ended: {ended.status}.", param="batch_id", code="batch_ended")
    service.batches.wake()
    return batch


def parse(body: bytes) -> BatchRequest:
    return read(BatchRequest, read_json(body))
