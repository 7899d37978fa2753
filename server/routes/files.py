"""/v1/files: the input files and the result files of batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from openai.types import FileDeleted, FileObject
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from decoding.errors import BadRequest
from server.batch.data_folder import convert_store_errors
from server.batch.pagination import AfterParam, LimitParam, PageSlot, build_page
from server.batch.store import StoreDep
from server.batch.uploads import open_upload
from server.errors import ErrorBody, NotFound, UnsupportedMediaType
from server.middleware.auth import OwnerDep, SameSite
from server.middleware.http import HEAD_KEY
from server.routes.file_response import FileContentResponse
from server.service import ServiceDep
from server.serving.admission import NotDraining

router = APIRouter(prefix="/v1/files", responses={404: {"model": ErrorBody}})

PurposeParam = Annotated[str | None, Query(max_length=64)]
OrderParam = Literal["asc", "desc"]
PART_BYTES = 1 << 16


class FileList(BaseModel):
    """One page of the files of a key."""

    object: str = "list"
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


UPLOAD_SCHEMA = {
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


@router.post("", openapi_extra=UPLOAD_SCHEMA, dependencies=[SameSite, NotDraining])
async def upload_file(request: Request, service: ServiceDep, store: StoreDep, owner: OwnerDep) -> FileObject:
    """Upload a file of JSON lines with the purpose `batch`.

    \f

    Returns:
        The description of the stored file.

    Raises:
        UnsupportedMediaType: The body is not a form.
        BadRequest: The form has no file, another purpose or an unknown field.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType("Content-Type must be multipart/form-data.")
    limit = service.settings.max_file_mb * 1_000_000
    async with open_upload(store.folder, owner, service.form_queue) as upload:
        form = await upload.read_form(request, limit)
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise BadRequest("Missing field 'file'.", param="file")
        if purpose != "batch":
            raise BadRequest("The purpose must be 'batch'.", param="purpose")
        if unknown := sorted(set(form) - {"file", "purpose"}):
            raise BadRequest(f"Unknown field '{unknown[0][:64]}'.", param=unknown[0][:64])
        return await store.add_upload(owner, upload, (file.filename or "file")[:256])


@router.get("", response_model=FileList, dependencies=[PageSlot])
async def list_files(
    service: ServiceDep,
    store: StoreDep,
    owner: OwnerDep,
    limit: LimitParam = 100,
    after: AfterParam = None,
    purpose: PurposeParam = None,
    order: OrderParam = "desc",
) -> Response:
    """List files, newest first, or oldest first with `order=asc`."""
    documents = await store.list_files(owner, limit + 1, after, purpose, is_ascending=order == "asc")
    return await run_sync(
        build_page, FileList, documents, limit, FileObject.model_validate_json, limiter=service.work_limiter
    )


@router.get("/{file_id}")
async def retrieve_file(file_id: str, store: StoreDep, owner: OwnerDep) -> FileObject:
    """Retrieve the description of a file."""
    return await store.get_file(owner, file_id)


@router.get(
    "/{file_id}/content",
    response_class=FileContentResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def retrieve_file_content(request: Request, file_id: str, store: StoreDep, owner: OwnerDep) -> Response:
    """Download the content of a file. The file of results of an unfinished batch has the results so far.

    \f

    Returns:
        The content as a stream, or as a snapshot while a batch writes it.

    Raises:
        NotFound: The key has no file with this id.
    """
    path = store.get_path((await store.get_file(owner, file_id)).id)
    with convert_store_errors():
        try:
            if await store.is_growing(owner, file_id):
                return await run_sync(read_snapshot, path, HEAD_KEY in request.scope)
            status = await run_sync(path.stat)
        except FileNotFoundError:  # its deletion was interrupted
            raise NotFound("There is no such file.", param="file_id") from None
    return FileContentResponse(path, media_type="application/octet-stream", stat_result=status)


@router.delete("/{file_id}")
async def delete_file(file_id: str, store: StoreDep, owner: OwnerDep) -> FileDeleted:
    """Delete a file, unless an unfinished batch uses it."""
    await store.delete_file(owner, file_id)
    return FileDeleted(id=file_id, object="file", deleted=True)


def read_snapshot(path: Path, is_head: bool) -> Response:
    """Build a response with the complete lines that a growing file has now. Slow: call it in a thread.

    Args:
        path: The file.
        is_head: Whether the response needs no body.

    Returns:
        The response. Its body is read while it is sent.
    """
    file = path.open("rb")
    try:
        size = find_last_line_end(file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    headers, media_type = {"content-length": str(size)}, "application/octet-stream"
    if is_head:
        file.close()
        return Response(headers=headers, media_type=media_type)
    return StreamingResponse(read_parts(file, size), media_type=media_type, headers=headers)


def find_last_line_end(file: BinaryIO) -> int:
    """Return the size of a file without an incomplete last line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - PART_BYTES)
        file.seek(start)
        if (index := file.read(end - start).rfind(b"\n")) >= 0:
            return start + index + 1
        end = start
    return 0


def read_parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of a file in parts, and close it."""
    with file:
        while size > 0 and (part := file.read(min(size, PART_BYTES))):
            size -= len(part)
            yield part
