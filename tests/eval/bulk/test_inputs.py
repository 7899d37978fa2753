"""Folders, JSON lines, parquet files and archives give the same items."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path

import pytest

from eval.bulk.inputs import InputOptions, count_items, iterate_items
from eval.errors import InputError
from tests.eval.bulk.pictures import draw, write_archive, write_pictures

OPTIONS = InputOptions(prompts=("Describe.",))


def test_folder_gives_its_pictures_with_every_prompt(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 2)
    (folder / "notes.txt").write_text("no picture")
    (folder / "more").mkdir()
    (folder / "more" / "x.JPG").write_bytes(draw(9))
    options = InputOptions(prompts=("a", "b"))
    items = list(iterate_items([folder], options))
    assert [(item.id, item.prompt) for item in items] == [
        (name, prompt) for name in ("0000.png", "0001.png", "more/x.JPG") for prompt in "ab"
    ]
    assert len({item.key for item in items}) == 6
    assert count_items([folder], options) == 6
    assert items[0].content == draw(0)


def test_lines_give_paths_data_urls_ids_and_prompts(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    url = "data:image/png;base64," + base64.b64encode(draw(1)).decode()
    records = [
        {"image": "0000.png", "prompt": "first", "id": 7},
        {"image": url, "prompt": "second"},
        {"image": "missing.png", "prompt": "third"},
        {"prompt": "fourth"},
        {"image": "0000.png"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n{broken\n[]\n")
    items = list(iterate_items([file], InputOptions()))
    assert [(item.id, item.prompt) for item in items[:2]] == [("7", "first"), ("in.jsonl::2", "second")]
    assert [item.content for item in items[:2]] == [draw(0), draw(1)]
    problems = [item.find_problem() or "" for item in items]
    assert problems[:2] == ["", ""]
    for problem, part in zip(problems[2:], ("No such file", '"image"', '"prompt"', "line 6", "line 7"), strict=True):
        assert part in problem
    assert count_items([file], InputOptions()) == 7


def test_archives_give_pictures_with_the_columns_beside_them(tmp_path: Path) -> None:
    write_archive(tmp_path / "1.tar", 2, prompt="Look.")
    write_archive(tmp_path / "0.tar", 1, prompt="See.")
    items = list(iterate_items([tmp_path], InputOptions()))
    assert [(item.id, item.prompt) for item in items] == [
        ("0.tar::deep/0000", "See."),
        ("1.tar::deep/0000", "Look."),
        ("1.tar::deep/0001", "Look."),
    ]
    assert items[2].content == draw(1)
    assert count_items([tmp_path], InputOptions()) == 3


def test_parquet_gives_bytes_and_structs(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"image": [draw(0), None]}), tmp_path / "a.parquet")
    structs = [{"bytes": draw(1), "path": None}, {"bytes": None, "path": "0002.png"}]
    (tmp_path / "0002.png").write_bytes(draw(2))
    parquet.write_table(pyarrow.table({"image": structs, "id": ["x", "y"]}), tmp_path / "b.parquet")
    items = list(iterate_items([tmp_path], OPTIONS))
    assert [item.id for item in items] == ["a.parquet::0", "a.parquet::1", "x", "y"]
    assert [item.content for item in items] == [draw(0), None, draw(1), draw(2)]
    assert "neither bytes nor a path" in str(items[1].find_problem())
    assert count_items([tmp_path], OPTIONS) == 4


def test_damaged_picture_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    (item,) = iterate_items([tmp_path], OPTIONS)
    assert "no known format" in str(item.find_problem())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("in.txt", b"", "is no picture"),
        ("in.tar", b"no archive", "in.tar: cannot be read"),
        ("absent", None, "no such file or folder"),
    ],
)
def test_bad_input_names_the_file(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        list(iterate_items([tmp_path / name], OPTIONS))


def test_picture_file_needs_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--prompt"):
        list(iterate_items([write_pictures(tmp_path / "in", 1)], InputOptions()))


def test_memory_does_not_grow_with_an_archive(tmp_path: Path) -> None:
    def measure_peak(count: int) -> int:
        file = write_archive(tmp_path / f"{count}.tar", count)
        tracemalloc.start()
        assert sum(1 for _ in iterate_items([file], OPTIONS)) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    measure_peak(10)
    assert measure_peak(1000) < 1.3 * measure_peak(100)
