"""The validation of a batch's input file, in slices of time."""

from __future__ import annotations

import time
from pathlib import Path

from openai.types import BatchError

from decoding.errors import BadRequest
from server.batch.jsonl import build_line_error, iter_lines, parse_line

MAX_LINES = 50_000
MAX_ERRORS = 100  # reported for one file
SLICE_SECONDS = 1.0  # in which other files, a cancellation and the end of the server wait


class InputFileValidator:
    """Validates all lines of an input file. Call `run_slice` in a thread until `is_finished`, and `close` at the end.

    A file of 512 MB can take minutes. Other files are validated between its slices, and its batch can be cancelled.

    Attributes:
        count: The lines that are not blank.
        errors: At most `MAX_ERRORS` errors of lines. Validation ends at that many errors, and after `MAX_LINES` lines,
            blank ones included.
        is_finished: Whether no line is left.
    """

    def __init__(self, path: Path, endpoint: str, max_line_bytes: int) -> None:
        """Create the validator of a file, which is opened in the first slice.

        Args:
            path: The file.
            endpoint: The batch's endpoint, which the url of each line must equal.
            max_line_bytes: Largest line.
        """
        self.count = 0
        self.errors: list[BatchError] = []
        self.is_finished = False
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes
        self._ids: set[str] = set()
        self._number = 0
        self._lines = iter_lines(path, max_line_bytes)

    def run_slice(self) -> None:
        """Validate lines for `SLICE_SECONDS`, at least one."""
        ends_at = time.monotonic() + SLICE_SECONDS
        for text in self._lines:
            self._number += 1
            if self._number > MAX_LINES:
                message = f"The file has more than {MAX_LINES} lines, blank ones included."
                self.errors.append(BatchError(code="too_many_lines", line=None, message=message, param=None))
                break
            if not text.isspace():
                self._validate_line(text)
            if len(self.errors) == MAX_ERRORS:
                break
            if time.monotonic() >= ends_at:
                return
        if self.count == 0 and not self.errors:
            self.errors.append(BatchError(code="empty_file", line=None, message="The file has no lines.", param=None))
        self.is_finished = True

    def _validate_line(self, text: bytes) -> None:
        self.count += 1
        try:
            line = parse_line(text, self._endpoint, self._max_line_bytes)
        except BadRequest as error:
            self.errors.append(build_line_error(error, self._number))
            return
        if line.custom_id in self._ids:
            message = "An earlier line has the same custom_id."
            self.errors.append(BatchError(code="duplicate_id", line=self._number, message=message, param="custom_id"))
        self._ids.add(line.custom_id)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
