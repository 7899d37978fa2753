"""Answers in the formats of the authors' own scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reply:
    """One answer to one question. `image` is a file name, `group` what the benchmark sorts by (MME's subtasks)."""

    question_id: int | str
    image: str
    question: str
    answer: str
    label: str = ""
    group: str = ""


def pope(replies: Iterable[Reply], file: Path) -> None:
    """AoiDragon/POPE evaluate.py: paired with the questions by order."""
    _lines(file, ({"question": each.question, "answer": each.answer} for each in replies))


def llava(replies: Iterable[Reply], file: Path) -> None:
    """LLaVA and VCD: `question_id` and `text`."""
    _lines(file, ({"question_id": each.question_id, "prompt": each.question, "text": each.answer} for each in replies))


def chair(replies: Iterable[Reply], file: Path) -> None:
    """CHAIR's stand-alone script and OPERA: the id of a picture must be a number of COCO's annotations.

    The script reads lines from a file that ends in .jsonl, and one array from .json.
    """
    rows = [{"image_id": each.question_id, "caption": each.answer} for each in replies]
    if file.suffix == ".json":
        _write(file, json.dumps(rows, ensure_ascii=False))
    else:
        _lines(file, rows)


def amber(replies: Iterable[Reply], file: Path) -> None:
    """AMBER inference.py: an array of `id` and `response`."""
    _write(file, json.dumps([{"id": each.question_id, "response": each.answer} for each in replies]))


def mme(replies: Sequence[Reply], folder: Path) -> None:
    """MME: a file for each subtask, parts separated by tabs; an answer may hold neither tabs nor ends of lines."""
    for group in dict.fromkeys(each.group for each in replies):
        rows = (
            "\t".join([each.image, each.question, each.label, " ".join(each.answer.split())])
            for each in replies
            if each.group == group
        )
        _write(folder / f"{group}.txt", "".join(f"{row}\n" for row in rows))


FORMATS: dict[str, Callable[[Sequence[Reply], Path], None]] = {
    "pope": pope,
    "llava": llava,
    "chair": chair,
    "amber": amber,
    "mme": mme,
}


def _lines(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    _write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
