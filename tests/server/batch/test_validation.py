"""The validation of input files in slices: others are validated in between, and it can be stopped."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.batch import validation
from server.batch.jsonl import parse_line
from server.batch.validation import InputFileValidator
from tests.server.batch.harness import CHAT, create_batch, make_line, stop, wait_for_status
from tests.server.conftest import StartServer, wait_until

LINES = [make_line(number) for number in range(9)]
MANY = [make_line(number) for number in range(2000)]


class SlowParser:
    """Replaces `parse_line`: a line takes a millisecond, and a slice has one line. The lines are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(validation, "SLICE_SECONDS", 0)
        monkeypatch.setattr(validation, "parse_line", self)

    def __call__(self, *values: Any) -> Any:
        self.count += 1
        time.sleep(0.001)
        return parse_line(*values)


def test_validation_stops_after_the_last_allowed_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = SlowParser(monkeypatch)
    monkeypatch.setattr(validation, "MAX_LINES", 5)
    path = tmp_path / "input"
    for lines, count in (([""] * 9, 0), (LINES, 5), ([*LINES[:3], "", "", ""], 3)):
        parser.count = 0
        path.write_text("".join(f"{line}\n" for line in lines))
        validator = validate(path)
        codes = [error.code for error in validator.errors]
        assert (validator.count, parser.count, codes) == (count, count, ["too_many_lines"])


def validate(path: Path) -> InputFileValidator:
    with closing(InputFileValidator(path, CHAT, 10_000)) as validator:
        while not validator.is_finished:
            validator.run_slice()
    return validator


def test_errors_of_all_slices_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowParser(monkeypatch)
    path = tmp_path / "input"
    path.write_text("\n".join([LINES[0], "nonsense", "", LINES[1], LINES[0], make_line(7, "/v1/completions")]))
    validator = validate(path)
    problems = [(error.line, error.code) for error in validator.errors]
    assert problems == [(2, "invalid_line"), (5, "duplicate_id"), (6, "mismatched_endpoint")]
    assert validator.count == 5


async def test_small_file_does_not_wait_for_large_ones(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowParser(monkeypatch)
    server = await start_server(api_keys="one,two,three,small")
    large = {}
    for key in ("one", "two", "three"):  # more than there are threads
        server.openai.api_key = key
        large[key] = await create_batch(server, *MANY)
    server.openai.api_key = "small"
    assert (await wait_for_status(server, await create_batch(server, make_line(1)))).status == "completed"
    for key, batch in large.items():
        server.openai.api_key = key
        assert (await server.openai.batches.retrieve(batch.id)).status == "validating"
        await server.openai.batches.cancel(batch.id)


async def test_batch_can_be_cancelled_during_its_validation(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = SlowParser(monkeypatch)
    server = await start_server()
    batch = await create_batch(server, *MANY)
    await wait_until(lambda: parser.count > 0)
    await server.openai.batches.cancel(batch.id)
    batch = await wait_for_status(server, batch)
    assert (batch.status, batch.errors, batch.output_file_id) == ("cancelled", None, None)
    assert parser.count < len(MANY)


async def test_validation_ends_with_the_server_and_begins_anew(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parser = SlowParser(monkeypatch)
    server = await start_server(data_dir=str(tmp_path))
    batch = await create_batch(server, *MANY[:300])
    await wait_until(lambda: parser.count > 0)
    await stop(server)
    count = parser.count
    assert count < 300
    server = await start_server(data_dir=str(tmp_path))
    batch = await wait_for_status(server, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 300
    assert parser.count == count + 300
