"""Folders, JSON lines, parquet files and archives give the same items."""

from __future__ import annotations

import base64
import errno
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from eval.bulk.engines import split_shares
from eval.bulk.inputs import InputOptions, count_items, iterate_items
from eval.bulk.items import JobSettings
from eval.bulk.rows import build_error_row
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


def test_linked_folders_are_read_once_and_hidden_ones_are_not(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 1)
    write_pictures(folder / ".cache", 2)
    (folder / "link").symlink_to(write_pictures(tmp_path / "elsewhere", 2))
    (folder / "loop").symlink_to(folder)
    assert [item.id for item in iterate_items([folder], OPTIONS)] == ["0000.png", "link/0000.png", "link/0001.png"]


def test_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "in", 1)
    locked = write_pictures(folder / "locked", 1)
    scan = os.scandir

    def deny(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(InputError, match="locked: cannot be read: Permission denied"):
        count_items([folder], OPTIONS)


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 1)
    os.rename(folder / "0000.png", os.fsencode(folder) + b"/b\xe4d.png")
    os.symlink(folder / "nowhere", os.fsencode(folder) + b"/c\xe4d.png")
    items = list(iterate_items([folder], OPTIONS))
    assert [(item.id, item.content) for item in items] == [("b\\xe4d.png", draw(0)), ("c\\xe4d.png", None)]
    for item in items:
        assert build_error_row(item, JobSettings(model="m"), str(item.problem)).model_dump_json()
    assert json.dumps([list(map(os.fsdecode, file)) for share in split_shares([folder]) for file in share])


def test_picture_with_several_frames_of_a_phone_is_a_jpeg_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=frames[1:])
    (item,) = iterate_items([tmp_path], OPTIONS)
    assert item.find_problem() is None
    assert item.read_image() == ("image/jpeg", (tmp_path / "x.jpg").read_bytes())


def test_huge_picture_is_named_as_such(tmp_path: Path) -> None:
    Image.new("1", (14000, 14000)).save(tmp_path / "x.png")
    (item,) = iterate_items([tmp_path], OPTIONS)
    assert "too large" in str(item.find_problem())


def test_lines_give_paths_data_urls_ids_and_prompts(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    url = "data:image/png;base64," + base64.b64encode(draw(1)).decode()
    records = [
        {"image": "0000.png", "prompt": "first", "id": 7},
        {"image": url, "prompt": "second"},
        {"image": "missing.png", "prompt": "third"},
        {"prompt": "fourth"},
        {"image": "0000.png"},
        {"image": "null\0.png", "prompt": "sixth"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n{broken\n[]\n")
    items = list(iterate_items([file], InputOptions()))
    assert [(item.id, item.prompt) for item in items[:2]] == [("7", "first"), ("in.jsonl::2", "second")]
    assert [item.content for item in items[:2]] == [draw(0), draw(1)]
    problems = [item.find_problem() or "" for item in items]
    assert problems[:2] == ["", ""]
    for problem, part in zip(
        problems[2:], ("No such file", '"image"', '"prompt"', "null", "line 7", "line 8"), strict=True
    ):
        assert part in problem
    assert count_items([file], InputOptions()) == 8


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


def test_damaged_parquet_file_is_named_before_the_job_begins(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "in.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"in\.parquet: cannot be read"):
        count_items([tmp_path], OPTIONS)


@pytest.mark.parametrize("damage", ["header", "end"])
def test_damaged_archive_is_not_taken_for_a_shorter_one(tmp_path: Path, damage: str) -> None:
    file = write_archive(tmp_path / "in.tar", 3)
    content = bytearray(file.read_bytes())
    second = content.index(b"deep/0001.png")
    if damage == "header":
        content[second + 148 : second + 156] = b"damaged!"  # its checksum
    else:
        del content[second + 100 :]
    file.write_bytes(content)
    for read in (lambda: count_items([file], OPTIONS), lambda: list(iterate_items([file], OPTIONS))):
        with pytest.raises(InputError, match=r"in\.tar: cannot be read"):
            read()


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
