"""/v1/batches: many requests in one file, answered when rows are free."""

from __future__ import annotations

import time
from typing import Any, Literal
from uuid import uuid4

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from openai.types import Batch
from pydantic import BaseModel, Field
from starlette.responses import Response

from decoding.errors import BadRequest
from server.batch.pagination import AfterParam, LimitParam, PageSlot, build_page
from server.batch.runner import RunnerDep
from server.batch.store import UNFINISHED_STATUSES, StoreDep
from server.errors import ErrorBody, NotFound
from server.middleware.auth import OwnerDep, SameSite
from server.middleware.body_budget import read_json_body
from server.schemas.base import Metadata, StrictModel, validate
from server.service import ServiceDep
from server.serving.admission import NotDraining
from server.serving.request_handler import parse_in_thread

router = APIRouter(prefix="/v1/batches", responses={404: {"model": ErrorBody}})

COMPLETION_WINDOW = 24 * 3600  # seconds


class BatchRequest(StrictModel):
    """OpenAI's request to create a batch."""

    input_file_id: str = Field(max_length=64)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class BatchList(BaseModel):
    """One page of the batches of a key."""

    object: str = "list"
    data: list[Batch]
    has_more: bool
    first_id: str | None
    last_id: str | None


@router.post("", dependencies=[NotDraining])
async def create_batch(
    request: Request, service: ServiceDep, store: StoreDep, runner: RunnerDep, owner: OwnerDep
) -> Batch:
    """Create a batch. Each line of its file is one request: `{"custom_id", "method": "POST", "url", "body"}`.

    \f

    Returns:
        The batch.

    Raises:
        BadRequest: The body is invalid, or the file has another purpose.
        NotFound: The input file does not exist.
    """
    async with read_json_body(request, service.body_budget, owner) as body:
        batch_request = await parse_in_thread(body, parse_batch_request, service)
    try:
        file = await store.get_file(owner, batch_request.input_file_id)
    except NotFound as error:
        error.param = "input_file_id"
        raise
    if file.purpose != "batch":
        raise BadRequest("The file must have the purpose 'batch'.", param="input_file_id")
    now = int(time.time())
    batch = Batch.model_validate(
        {
            "id": f"batch_{uuid4().hex}",
            "object": "batch",
            "endpoint": batch_request.endpoint,
            "input_file_id": file.id,
            "completion_window": batch_request.completion_window,
            "status": "validating",
            "created_at": now,
            "expires_at": now + COMPLETION_WINDOW,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": batch_request.metadata,
        }
    )
    await store.add_batch(owner, batch)
    runner.wake()
    return batch


@router.get("", response_model=BatchList, dependencies=[PageSlot])
async def list_batches(
    service: ServiceDep,
    store: StoreDep,
    runner: RunnerDep,
    owner: OwnerDep,
    limit: LimitParam = 20,
    after: AfterParam = None,
) -> Response:
    """List batches, newest first."""
    documents = await store.list_batches(owner, limit + 1, after)

    def parse(document: str) -> Batch:
        return runner.progress.describe(Batch.model_validate_json(document))

    return await run_sync(build_page, BatchList, documents, limit, parse, limiter=service.work_limiter)


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, store: StoreDep, runner: RunnerDep, owner: OwnerDep) -> Batch:
    """Retrieve a batch with its status, counts and file ids. While it waits for storage, `errors` has the reason."""
    return runner.progress.describe(await store.get_batch(owner, batch_id))


@router.post("/{batch_id}/cancel", dependencies=[SameSite])
async def cancel_batch(batch_id: str, store: StoreDep, runner: RunnerDep, owner: OwnerDep) -> Batch:
    """Cancel a batch. Running requests finish, waiting ones are dropped, and the answers can be fetched.

    \f

    Returns:
        The batch with its new status.

    Raises:
        BadRequest: The batch has ended.
    """
    now = int(time.time())
    batch = await store.update_batch(owner, batch_id, *UNFINISHED_STATUSES, status="cancelling", cancelling_at=now)
    if batch is None:
        ended = await store.get_batch(owner, batch_id)
        raise BadRequest(f"The batch has ended: {ended.status}.", param="batch_id", code="batch_ended")
    runner.wake()
    return batch


def parse_batch_request(body: dict[str, Any]) -> BatchRequest:
    """Validate a parsed body, or raise BadRequest for its first error."""
    return validate(BatchRequest, body)
