"""Storage of answers: append, sync, lock, and recovery of incomplete files."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from eval.core.answer_store import AnswerStore, StoredAnswer, describe_unreadable, load_answers
from eval.errors import RunError


def make_answer(key: str, text: str = "Yes") -> StoredAnswer:
    return StoredAnswer(key=key, question="random/1", strategy="plain", seed=None, text=text, seconds=0.1)


def test_add_keeps_the_first_answer_of_a_key(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "run" / "answers.jsonl") as store:
        store.add(make_answer("a", "Ja\u2028\n"))
        store.add(make_answer("a", "another"))
    with AnswerStore(tmp_path / "run" / "answers.jsonl") as store:
        assert store["a"].text == "Ja\u2028\n"
        assert len(store) == 1


@pytest.mark.parametrize("tail", [b"{", b'{"key":"b"', b"\xff\xfe"])
def test_an_incomplete_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "answers.jsonl"
    with AnswerStore(file) as store:
        store.add(make_answer("a"))
    with file.open("ab") as end:
        end.write(tail)
    assert set(load_answers(file).by_key) == {"a"}
    with AnswerStore(file) as store:
        store.add(make_answer("b"))
    assert set(load_answers(file).by_key) == {"a", "b"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": 5}, 'field "key": Input should be a valid string'),
        ({"token_scores": [["Yes", None, None]]}, 'field "token_scores.0.1": Input should be a valid number'),
        (
            {"receipt": {"claims": [{"start": 0, "end": 3, "probability": None}]}},
            'field "receipt": Value error, field "claims.0.probability": Input should be a valid number',
        ),
    ],
)
def test_an_unreadable_line_loses_no_other_answer(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    file = tmp_path / "answers.jsonl"
    broken = json.dumps(make_answer("b").model_dump() | change)
    file.write_text(f"{make_answer('a').model_dump_json()}\n{broken}\n{make_answer('c').model_dump_json()}\n")
    with AnswerStore(file) as store:
        assert [line.number for line in store.unreadable] == [2]
        assert "a" in store
        assert "b" not in store
        store.add(make_answer("b"))
    stored = load_answers(file)
    assert set(stored.by_key) == {"a", "b", "c"}
    text = describe_unreadable("answers.jsonl", stored.unreadable)
    assert text == f"answers.jsonl: 1 lines are no answers and are ignored (line 2: {problem})."


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        AnswerStore(tmp_path / "a.jsonl"),
        pytest.raises(RunError, match="another run"),
        AnswerStore(tmp_path / "a.jsonl"),
    ):
        pass


def test_an_unwritable_folder_raises_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"answers\.jsonl cannot be written: .*Choose another folder"),
        AnswerStore(tmp_path / "file" / "answers.jsonl"),
    ):
        pass


def test_every_answer_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with AnswerStore(tmp_path / "a.jsonl") as store:
        before = len(synced)
        store.add(make_answer("a"))
        store.add(make_answer("b"))
        assert len(synced) == before + 2


def test_a_full_disk_raises_an_error_and_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, line: bytes) -> int:
        if len(line) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, line[:10])

    write = os.write
    file = tmp_path / "a.jsonl"
    with AnswerStore(file) as store:
        store.add(make_answer("a"))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match=r"a\.jsonl cannot be written: No space left"):
            store.add(make_answer("b"))
        monkeypatch.undo()
    with AnswerStore(file) as store:
        store.add(make_answer("c"))
    assert set(load_answers(file).by_key) == {"a", "c"}
