"""Rows stand exactly once, wherever the process ends."""

from __future__ import annotations

import errno
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.bulk import store as store_module
from eval.bulk.inspection import iterate_rows
from eval.bulk.items import BulkItem, JobSettings
from eval.bulk.rows import BulkRow, build_error_row, build_schema, write_part
from eval.bulk.store import RowStore, StoredJob, list_parts
from eval.errors import RunError
from eval.runs.stack_spec import parse_spec
from tests.eval.bulk.pictures import draw, read_rows
from tests.eval.cli_driver import ROOT

SETTINGS = JobSettings(model="m")
JOB = StoredJob(settings=SETTINGS, row_format="jsonl")


def make_rows(first: int, count: int) -> list[BulkRow]:
    items = [
        BulkItem(id=str(number), scope="", image=None, prompt="p", content=draw(number))
        for number in range(first, first + count)
    ]
    return [build_error_row(item, SETTINGS, "none") for item in items]


def keys_of(rows: list[BulkRow]) -> list[str]:
    return sorted(row.key for row in rows)


def test_row_is_stored_once(tmp_path: Path) -> None:
    rows = make_rows(0, 5)
    with RowStore(tmp_path, JOB, part_rows=2) as store:
        assert store.add(rows[:3]) == rows[:3]
        assert store.add(rows) == rows[3:]
        assert len(list_parts(tmp_path)) == 2
        assert store.find_missing(keys_of(make_rows(4, 3))) == {row.key for row in make_rows(5, 2)}
        store.finish()
        assert store.totals.rows == store.totals.failures == 5
    with RowStore(tmp_path, JOB) as store:
        assert store.totals.rows == 5
        assert store.add(rows) == []
        store.finish()
    assert [row["key"] for row in read_rows(tmp_path)] == keys_of(rows)


@pytest.mark.parametrize("after_write", [False, True])
def test_full_disk_neither_loses_nor_doubles_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_write: bool
) -> None:
    """The process ends before a part is written, or between the part and the transaction that removes its rows."""

    def fail(slices: Iterator[list[BulkRow]], file: Path, row_format: store_module.RowFormat) -> None:
        if after_write:
            write_part(slices, file, row_format)
        raise OSError(errno.ENOSPC, "No space left on device")

    rows = make_rows(0, 7)
    with monkeypatch.context() as patch, RowStore(tmp_path, JOB, part_rows=4) as store:
        patch.setattr(store_module, "write_part", fail)
        with pytest.raises(RunError, match="No space left on device"):
            store.add(rows)
    with RowStore(tmp_path, JOB, part_rows=3) as store:
        assert store.find_missing(keys_of(rows)) == set()
        store.finish()
    assert [row["key"] for row in read_rows(tmp_path)] == keys_of(rows)


@pytest.mark.parametrize("row_format", ["parquet", "jsonl"])
def test_part_is_written_and_read_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_format: store_module.RowFormat
) -> None:
    pytest.importorskip("pyarrow")
    lengths = []

    def record(slices: Iterator[list[BulkRow]], file: Path, row_format: store_module.RowFormat) -> int:
        def count_rows() -> Iterator[list[BulkRow]]:
            for rows in slices:
                lengths.append(len(rows))
                yield rows

        return write_part(count_rows(), file, row_format)

    monkeypatch.setattr(store_module, "READ_ROWS", 3)
    monkeypatch.setattr(store_module, "write_part", record)
    rows = make_rows(0, 9)
    with RowStore(tmp_path, StoredJob(settings=SETTINGS, row_format=row_format), part_rows=7) as store:
        store.add(rows)
        assert lengths == [3, 3, 1]
        store.finish()
    assert len(list_parts(tmp_path)) == 2
    assert list(iterate_rows(tmp_path)) == rows


def test_full_state_file_keeps_the_rows_before(tmp_path: Path) -> None:
    rows, more = make_rows(0, 3), make_rows(3, 1000)
    with RowStore(tmp_path, JOB) as store:
        store.add(rows)
        pages = store._open.execute("PRAGMA page_count").fetchone()[0]
        store._open.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(RunError, match="full"):
            store.add(more)
        assert store.totals.rows == 3
    with RowStore(tmp_path, JOB) as store:
        assert store.find_missing(keys_of([*rows, *more])) == {row.key for row in more}
        store.add(more)
        store.finish()
    assert [row["key"] for row in read_rows(tmp_path)] == keys_of([*rows, *more])


def test_incomplete_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    incomplete = tmp_path / "rows" / ".part-000000.jsonl.incomplete"
    incomplete.write_text("half")
    with RowStore(tmp_path, JOB):
        assert not incomplete.exists()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with RowStore(tmp_path, JOB):
        pass
    other = JOB.model_copy(update={"settings": JobSettings(model="m", spec=parse_spec("agla:alpha=1"))})
    with pytest.raises(RunError, match='another "spec"'), RowStore(tmp_path, other):
        pass
    with pytest.raises(RunError, match='another "row_format"'), RowStore(tmp_path, StoredJob(settings=SETTINGS)):
        pass


def test_second_process_is_refused(tmp_path: Path) -> None:
    with RowStore(tmp_path, JOB), pytest.raises(RunError, match="another job is writing"), RowStore(tmp_path, JOB):
        pass


def test_closed_store_has_no_open_files(tmp_path: Path) -> None:
    store = RowStore(tmp_path, JOB)
    with store:
        connection = store._open
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")
    with pytest.raises(RunError, match="not open"):
        store.add(make_rows(0, 1))


def test_parts_have_the_types_of_the_schema(tmp_path: Path) -> None:
    """A part whose rows are all errors has the types of other parts, so that readers can join them."""
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_part([make_rows(0, 2)], tmp_path / "part-000000.parquet", "parquet")
    assert parquet.read_schema(tmp_path / "part-000000.parquet").equals(build_schema())


def test_page_of_the_documentation_has_all_columns() -> None:
    page = (ROOT / "docs" / "batch.md").read_text()
    _, _, table = page.partition("| column | type | content |")
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    assert [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)] == list(BulkRow.model_fields)


def test_end_of_a_job_waits_for_rows_that_a_thread_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl+C and errors end a job while a thread writes a part. Its name is not given to another part."""
    writing, checked = threading.Event(), threading.Event()

    def write_slowly(slices: Iterator[list[BulkRow]], file: Path, row_format: store_module.RowFormat) -> int:
        count = write_part(slices, file, row_format)
        writing.set()
        checked.wait(0.3)  # without a lock, the other thread is here meanwhile
        return count

    monkeypatch.setattr(store_module, "write_part", write_slowly)
    rows = make_rows(0, 6)
    with RowStore(tmp_path, JOB, part_rows=4) as store:
        thread = threading.Thread(target=store.add, args=[rows])
        thread.start()
        assert writing.wait(10)
        store.finish()
        checked.set()
        assert store.totals.parts == 2
    thread.join()
    assert [row["key"] for row in read_rows(tmp_path)] == keys_of(rows)


def test_closed_store_is_closed_after_a_thread_has_stored_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = threading.Event()

    def write_slowly(slices: Iterator[list[BulkRow]], file: Path, row_format: store_module.RowFormat) -> int:
        writing.set()
        time.sleep(0.3)
        return write_part(slices, file, row_format)

    monkeypatch.setattr(store_module, "write_part", write_slowly)
    results = []
    with RowStore(tmp_path, JOB, part_rows=2) as store:
        thread = threading.Thread(target=lambda: results.append(store.add(make_rows(0, 2))))
        thread.start()
        assert writing.wait(10)
    thread.join()
    assert results == [make_rows(0, 2)]


def test_ctrl_c_after_the_transaction_of_a_part_does_not_reuse_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(0, 5)
    with RowStore(tmp_path, JOB, part_rows=3) as store:
        save = store._save_totals

        def save_and_interrupt(totals: store_module.RowTotals) -> None:
            save(totals)
            if totals.parts:
                store._open.commit()
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(store, "_save_totals", save_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                store.add(rows)
        store.finish()
        assert store.totals.parts == 2
    assert [row["key"] for row in read_rows(tmp_path)] == keys_of(rows)
