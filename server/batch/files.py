"""/v1/files: what goes into batches, and what comes out of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from openai.types import FileDeleted, FileObject
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from decoding.errors import BadRequest
from server.batch.page import After, Limit, page
from server.errors import ErrorBody, Unavailable, WrongMediaType
from server.guard import Owner
from server.service import TheService

router = APIRouter(prefix="/v1/files", responses={404: {"model": ErrorBody}})

Purpose = Annotated[str | None, Query(max_length=64)]
Order = Literal["asc", "desc"]


class FileList(BaseModel):
    object: str = "list"
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=UPLOAD)
async def upload_file(request: Request, service: TheService, owner: Owner) -> FileObject:
    """One file in JSON lines, with the purpose `batch`."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise WrongMediaType("Content-Type must be multipart/form-data.")
    try:
        form = await request.form(max_files=1, max_fields=8)
    except HTTPException:  # what Starlette makes of a form that it cannot read
        raise BadRequest("The body is not a form with one file.") from None
    try:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise BadRequest("Missing field 'file'.", param="file")
        if purpose != "batch":
            raise BadRequest("The purpose must be 'batch'.", param="purpose")
        if unknown := sorted(set(form) - {"file", "purpose"}):
            raise BadRequest(f"Unknown field '{unknown[0][:64]}'.", param=unknown[0][:64])
        await service.store.room(file.size or 0)
        identity = f"file-{uuid4().hex}"
        try:
            await run_sync(copy, file, service.store.path(identity))
        except OSError:
            await run_sync(partial(service.store.path(identity).unlink, missing_ok=True))
            raise Unavailable("The server cannot store the file.") from None
        return await service.store.keep(owner, identity, (file.filename or "file")[:256], "batch")
    finally:
        await form.close()


def copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        while piece := file.file.read(1 << 20):
            target.write(piece)


@router.get("")
async def list_files(
    service: TheService,
    owner: Owner,
    limit: Limit = 100,
    after: After = None,
    purpose: Purpose = None,
    order: Order = "desc",
) -> FileList:
    """The newest first, or with `order=asc` the oldest."""
    files = [file for file in await service.store.files(owner) if purpose in (None, file.purpose)]
    return FileList.model_validate(page(files if order == "desc" else files[::-1], limit, after))


@router.get("/{file_id}")
async def retrieve_file(file_id: str, service: TheService, owner: Owner) -> FileObject:
    return await service.store.file(owner, file_id)


@router.get(
    "/{file_id}/content", response_class=FileResponse, responses={200: {"content": {"application/octet-stream": {}}}}
)
async def file_content(file_id: str, service: TheService, owner: Owner) -> FileResponse:
    file = await service.store.file(owner, file_id)
    return FileResponse(service.store.path(file.id), media_type="application/octet-stream")


@router.delete("/{file_id}")
async def delete_file(file_id: str, service: TheService, owner: Owner) -> FileDeleted:
    """Not while a batch reads it."""
    if file_id in {batch.input_file_id for _, batch in await service.store.unfinished()}:
        raise BadRequest("A batch that has not ended reads this file.", param="file_id", code="file_in_use")
    await service.store.drop(owner, file_id)
    return FileDeleted(id=file_id, object="file", deleted=True)
