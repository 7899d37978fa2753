from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from eval.errors import InputError, RunError
from eval.question import Question
from eval.recipe import PLAIN, recipe, recipes
from eval.request import Request, Sampling, seed_of
from eval.store import Answer, Store, stored


def answer(key: str, text: str = "Yes") -> Answer:
    return Answer(key=key, question="random/1", strategy="plain", seed=None, text=text, seconds=0.1)


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    with Store(tmp_path / "run" / "answers.jsonl") as store:
        store.add(answer("a", "Ja\u2028\n"))
        store.add(answer("a", "another"))
    with Store(tmp_path / "run" / "answers.jsonl") as store:
        assert store["a"].text == "Ja\u2028\n"
        assert len(store) == 1


@pytest.mark.parametrize("tail", [b"{", b'{"key":"b"', b"\xff\xfe"])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "answers.jsonl"
    with Store(file) as store:
        store.add(answer("a"))
    with file.open("ab") as end:
        end.write(tail)
    assert set(stored(file)) == {"a"}
    with Store(file) as store:
        store.add(answer("b"))
    assert set(stored(file)) == {"a", "b"}


def test_a_spoilt_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(answer("a").model_dump_json() + '\n{"key": 5}\n')
    with pytest.raises(InputError, match=r'answers\.jsonl:2: field "key"'):
        stored(file)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path / "a.jsonl"), pytest.raises(RunError, match="another run"), Store(tmp_path / "a.jsonl"):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"answers\.jsonl cannot be written: .*Choose another place"),
        Store(tmp_path / "file" / "answers.jsonl"),
    ):
        pass


def test_every_answer_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with Store(tmp_path / "a.jsonl") as store:
        before = len(synced)
        store.add(answer("a"))
        store.add(answer("b"))
        assert len(synced) == before + 2


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, line: bytes) -> int:
        if len(line) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, line[:10])

    write = os.write
    file = tmp_path / "a.jsonl"
    with Store(file) as store:
        store.add(answer("a"))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match=r"a\.jsonl cannot be written: No space left"):
            store.add(answer("b"))
        monkeypatch.undo()
    with Store(file) as store:
        store.add(answer("c"))
    assert set(stored(file)) == {"a", "c"}


def asked(tmp_path: Path, **changes: object) -> Request:
    image = tmp_path / str(changes.pop("image", "one.png"))
    image.write_bytes(image.name.encode())
    question = Question("1", "all", image, str(changes.pop("prompt", "Is it?")))
    fields = {"recipe": PLAIN, "full": PLAIN, "sampling": Sampling(), "model": "m", "seed": None}
    return Request(question=question, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"image": "two.png"},
        {"prompt": "Is it not?"},
        {"sampling": Sampling(temperature=1)},
        {"sampling": Sampling(max_tokens=1)},
        {"model": "n"},
        {"weights": "abc"},
        {"seed": 1},
        {"full": recipe("agla")},
        {"full": recipe("plain:alpha=1")},
    ],
)
def test_the_key_changes_with_all_that_the_answer_depends_on(tmp_path: Path, change: dict[str, object]) -> None:
    assert asked(tmp_path).key == asked(tmp_path).key
    assert asked(tmp_path).key != asked(tmp_path, **change).key


def test_a_seed_belongs_to_a_question(tmp_path: Path) -> None:
    one, other = asked(tmp_path).question, asked(tmp_path, prompt="And this?").question
    assert seed_of(0, one) == seed_of(0, one)
    assert len({seed_of(0, one), seed_of(1, one), seed_of(0, other)}) == 3
    assert 0 <= seed_of(0, one) < 2**31


def test_recipes_are_read() -> None:
    labels = [each.label for each in recipes("plain, agla:alpha=1.0,beta=0.3,vcd,agla+vhr:vhr.alpha=2,agla:text=a dog")]
    assert labels == ["plain", "agla:alpha=1.0,beta=0.3", "vcd", "agla+vhr:vhr.alpha=2", "agla:text=a dog"]
    assert [each.label for each in recipes(",".join(labels))] == labels
