"""Uploads: forms whose file goes into the data folder while it arrives, within the bound on all files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO, cast

import anyio
from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from decoding.errors import BadRequest
from server.batch.data_folder import DataFolder, PartialFile
from server.errors import BodyTimeout, BodyTooLarge, StorageFull, StoreFailed
from server.fair_queue import FairQueue
from server.middleware.request_body import DRAIN_TIMEOUT
from server.threads import run_to_end

MAX_FIELDS = 8
MAX_FIELD_BYTES = 1024
MAX_BOUNDARY = 256  # characters that the parser takes. The standard allows 70
CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"ascii")
CALLBACKS = (
    "on_part_begin",
    "on_part_data",
    "on_part_end",
    "on_header_field",
    "on_header_value",
    "on_header_end",
    "on_headers_finished",
    "on_end",
)


class Upload:
    """The file of one form."""

    def __init__(self, folder: DataFolder, owner: str, queue: FairQueue) -> None:
        self._folder = folder
        self._queue = queue
        self._file = folder.add_partial_file(owner)

    async def read_form(self, request: Request, max_bytes: int) -> FormData:
        """Read a form with one file.

        Args:
            request: A request with a multipart form.
            max_bytes: Bound on the body.

        Returns:
            The fields of the form. The content of its file is in this upload.

        Raises:
            BadRequest: The form is not valid.
            StorageFull: The folder would exceed a bound, or has dropped this upload for another one.
            StoreFailed: The file cannot be written.
        """
        stream = request.stream()
        try:
            if (declared := parse_length(request.headers)) <= max_bytes:  # otherwise reading the body raises
                self._folder.check_fits(self._file.owner, declared)
            return await self._parse(request.headers, stream)
        except (BadRequest, StorageFull, StoreFailed):
            with suppress(BodyTimeout, BodyTooLarge, ClientDisconnect), anyio.move_on_after(DRAIN_TIMEOUT):
                async for _ in stream:  # a client that is still sending reads the refusal
                    pass
            raise

    async def _parse(self, headers: Headers, stream: AsyncGenerator[bytes, None]) -> FormData:
        try:
            return await UploadParser(headers, stream, self._file, self._queue).parse()
        except (MultiPartException, UnicodeError):
            raise BadRequest("The body must be a form with one file.") from None

    def publish(self, file_id: str) -> None:
        """Sync the file and move it to its place. Slow: call it in a thread.

        Args:
            file_id: New id of the file.
        """
        self._file.publish(file_id)

    async def remove(self) -> None:
        """Remove the file, unless it was published."""
        with anyio.CancelScope(shield=True):
            await run_sync(self._folder.drop_partial_file, self._file)


@asynccontextmanager
async def open_upload(folder: DataFolder, owner: str, queue: FairQueue) -> AsyncGenerator[Upload, None]:
    """Create an upload. Leaving the context removes its file, unless it was published.

    Args:
        folder: The folder.
        owner: Owner of the file.
        queue: The threads that parse chunks of forms, for which API keys take turns.

    Yields:
        The upload, which has no file on disk until it is written.
    """
    upload = Upload(folder, owner, queue)
    try:
        yield upload
    finally:
        await upload.remove()


class UploadParser(MultiPartParser):
    """Starlette's parser, with the file in the data folder and not in the folder for temporary files.

    It parses in a thread, one chunk at a time, and API keys take turns. Content that resembles the boundary in many
    places takes several hundred times as long as other content, and would hold up the event loop.
    """

    def __init__(
        self, headers: Headers, stream: AsyncGenerator[bytes, None], file: PartialFile, queue: FairQueue
    ) -> None:
        super().__init__(headers, stream, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        self._file = ParsedFile(file)
        self._owner = file.owner
        self._queue = queue

    async def parse(self) -> FormData:
        """Read the form.

        Returns:
            The fields of the form.

        Raises:
            BadRequest: The form has no boundary, or is not in UTF-8.
            MultiPartException: The form is not valid.
        """
        _, options = parse_options_header(self.headers["content-type"])
        # The base class decodes with any codec of Python. Some take quadratic time, and others raise.
        if options.get(b"charset", CHARSETS[0]).lower() not in CHARSETS:
            raise BadRequest("The charset of Content-Type must be utf-8.")
        if not 0 < len(options.get(b"boundary", b"")) <= MAX_BOUNDARY:
            raise BadRequest(f"The Content-Type of a form must have a boundary of 1 to {MAX_BOUNDARY} characters.")
        callbacks: Any = {name: getattr(self, name) for name in CALLBACKS}
        parser = MultipartParser(options[b"boundary"], callbacks)
        try:
            async for chunk in self.stream:
                async with self._queue.hold(self._owner, 1):
                    await run_to_end(parser.write, chunk)
                await self._write_parts()
            parser.finalize()
        except FormParserError as error:
            raise MultiPartException("The form is not valid.") from error
        return FormData(self.items)

    async def _write_parts(self) -> None:
        """Write what has been parsed of the file. A form has one."""
        parts = self._file_parts_to_write
        if parts and (file := parts[0][0].file) is not None:
            await file.write(b"".join(data for _, data in parts))
        parts.clear()

    def on_headers_finished(self) -> None:
        """Replace the temporary file that the base class has opened, and decode as UTF-8 what is declared as ASCII."""
        self._charset = "utf-8"
        super().on_headers_finished()
        if (file := self._current_part.file) is not None:
            file.file.close()
            file.file = cast(BinaryIO, self._file)


class ParsedFile:
    """The part of a file's interface that Starlette's parser uses. It writes in threads."""

    def __init__(self, file: PartialFile) -> None:
        self.write = file.write

    def seek(self, offset: int) -> None:
        """Do nothing. The parser rewinds a complete file."""

    def close(self) -> None:
        """Do nothing. The parser closes the file of a broken form, which `Upload.remove` removes."""


def parse_length(headers: Headers) -> int:
    """Return the declared length of a body in bytes, or 0 if it has none."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 20 else 0
