"""Tables of the hub as official files: the columns of each benchmark, and the folder that its task reads."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from eval.core.task import CONSTANT_ANSWERS
from eval.errors import EvaluationError, InputError
from eval.hub.rows import IMAGE_COLUMN, HubRow

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
POPE_SPLITS = ("random", "popular", "adversarial")
MME_SUBTASKS = ("existence", "count", "position", "color")
HALLUSIONBENCH_COLUMNS = (
    "category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "question", "gt_answer",
)  # fmt: skip
OPTIONAL_COLUMNS = ("sample_note", "gt_answer_details", "filename")
COMPANIONS: Mapping[str, Sequence[str]] = {"amber-generative": ("relation.json", "safe_words.txt")}
"""Files of the authors' repositories that tasks need beside their tables."""
OBJECTS_COLUMN = "image_content"


class OfficialFolder:
    """A folder of official files that is being written.

    Args:
        path: The folder.
        companions: Official files that no table has.
    """

    def __init__(self, path: Path, companions: Sequence[Path] = ()) -> None:
        self.path = path
        self.companions = companions
        self._hashes: dict[str, str] = {}

    def write_image(self, row: HubRow, folder: str, name: str = "", *, suffix: str | None = None) -> str:
        """Write the image of a row.

        Args:
            row: The row.
            folder: Folder below this one.
            name: Name of the file. Empty for the name in the table or, without one, the hash of the content.
            suffix: Suffix of the file. None for that of the name or of the content.

        Returns:
            Name of the file.

        Raises:
            InputError: The row has no image, or another image with this name has been written.
        """  # noqa: DOC502 - `build_error` builds it
        content = row.get_image()
        digest = hashlib.sha256(content).hexdigest()
        name = name or row.image_name or digest[:20]
        if suffix is not None:
            name += suffix
        elif Path(name).suffix.lower() not in {*SUFFIXES.values(), ".jpeg"}:
            name += _find_suffix(row, content)
        place = f"{folder}/{name}"
        if (known := self._hashes.setdefault(place, digest)) != digest:
            raise row.build_error(f"{name} is the name of two different images", IMAGE_COLUMN)
        file = self.path / place
        if known == digest and not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return name

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write_text(name, json.dumps(value, ensure_ascii=False))


def _find_suffix(row: HubRow, content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return SUFFIXES.get(image.format or "", ".png")
    except OSError:
        raise row.build_error("is not an image", IMAGE_COLUMN) from None


class DistinctRows:
    """The rows of a benchmark by key. The hub has some rows in several files, and equal ones count once."""

    def __init__(self) -> None:
        self._values: dict[Any, object] = {}

    def add(self, row: HubRow, key: object, value: object, column: str) -> bool:
        """Add a row and return whether it is new.

        Args:
            row: The row.
            key: Its key.
            value: Its content.
            column: Column of the key.

        Returns:
            False if the same row has been added before.

        Raises:
            InputError: A row with this key and another content has been added.
        """  # noqa: DOC502 - `build_error` builds it
        if key not in self._values:
            self._values[key] = value
            return True
        if self._values[key] != value:
            raise row.build_error(f"{key} is used twice, with different values", column)
        return False


def write_pope(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write POPE. The split of a question is its `category` or, without this column, the split of its table."""
    lines: defaultdict[str, list[str]] = defaultdict(list)
    distinct = DistinctRows()
    for row in rows:
        split = row.find_text("category") or row.split
        if split not in POPE_SPLITS:
            raise row.build_error(f"is {split!r}, not one of {', '.join(POPE_SPLITS)}", "category")
        number = row.get_text("question_id", "id")
        question = {
            "question_id": int(number) if number.isdecimal() else number,
            "image": folder.write_image(row, "images", row.find_text("image_source") or ""),
            "text": row.get_text("question", "text"),
            "label": _read_answer(row, "answer", "label"),
        }
        if distinct.add(row, (split, number), question, "question_id"):
            lines[split].append(json.dumps(question, ensure_ascii=False) + "\n")
    for split, texts in lines.items():
        folder.write_text(f"pope/{split}.jsonl", "".join(texts))


def write_mme(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write the hallucination subset of MME. Other subtasks are left out."""
    questions: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    distinct = DistinctRows()
    for row in rows:
        if (subtask := row.get_text("category")) not in MME_SUBTASKS:
            continue
        name = folder.write_image(row, subtask, Path(row.get_text("question_id")).name)
        text = " ".join(row.get_text("question").split())
        answer = _read_answer(row, "answer").capitalize()
        if distinct.add(row, (subtask, name, text), answer, "question"):
            questions[subtask, Path(name).stem].append(f"{text}\t{answer}\n")
    for (subtask, stem), texts in questions.items():
        folder.write_text(f"{subtask}/{stem}.txt", "".join(texts))


def write_hallusionbench(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write HallusionBench. Rows with `visual_input` 0 have no image."""
    questions: list[dict[str, Any]] = []
    distinct = DistinctRows()
    for row in rows:
        question: dict[str, Any] = {name: row.get_text(name) for name in HALLUSIONBENCH_COLUMNS}
        question |= {name: row.values.get(name) for name in OPTIONAL_COLUMNS}
        category, subcategory = question["category"], question["subcategory"]
        if question["visual_input"] != "0":
            name = f"{question['set_id']}_{question['figure_id']}"
            folder.write_image(row, f"{category}/{subcategory}", name, suffix=".png")
        key = (category, subcategory, question["set_id"], question["figure_id"], question["question_id"])
        if distinct.add(row, key, question, "question_id"):
            questions.append(question)
    folder.write_json("HallusionBench.json", questions)


def write_mmvp(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write MMVP. An answer is `(a)` or `a`."""
    lines = ["Index,Question,Options,Correct Answer\n"]
    distinct = DistinctRows()
    for row in rows:
        index = row.get_text("Index", "index")
        folder.write_image(row, "images", index)
        answer = row.get_text("Correct Answer", "answer").strip("()").lower()
        cells = [index, row.get_text("Question", "question"), row.get_text("Options", "options"), f"({answer})"]
        if distinct.add(row, index, cells, "Index"):
            lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n")
    folder.write_text("Questions.csv", "".join(lines))


def write_dash_b(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write DASH-B. File names of images repeat, so that files have the question id in front."""
    kinds = {"no": "neg", "yes": "pos"}
    indices: dict[str, defaultdict[str, list[str]]] = {kind: defaultdict(list) for kind in kinds.values()}
    distinct = DistinctRows()
    for row in rows:
        kind, name = kinds[_read_answer(row, "answer")], row.get_text("object")
        number = row.get_text("question_id")
        file_name = f"{number}-{Path(row.find_text('img_id') or row.image_name).name}".removesuffix("-")
        file = folder.write_image(row, f"{kind}/hub/{name}", file_name)
        if distinct.add(row, number, [kind, name, file], "question_id"):
            indices[kind][name].append(file)
    for kind, objects in indices.items():
        folder.write_json(f"dash_benchmark_{kind}.json", {"hub": objects})


def write_amber(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write AMBER. The position of an annotation is the id of its question, and ids that no row has stay empty."""
    queries: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    annotations: dict[int, dict[str, Any]] = {}
    distinct = DistinctRows()
    for row in rows:
        number, kind = row.get_text("id"), row.get_text("type")
        if not number.isdecimal() or not int(number):
            raise row.build_error(f"is {number!r}, not a positive integer", "id")
        query = {"id": int(number), "image": folder.write_image(row, "image"), "query": row.get_text("query")}
        annotation: dict[str, Any] = {"id": int(number), "type": kind}
        if kind == "generative":
            annotation |= {"truth": row.get_texts("truth"), "hallu": row.get_texts("hallu")}
        else:
            annotation["truth"] = _read_answer(row, "truth")
        if distinct.add(row, int(number), [query, annotation], "id"):
            annotations[int(number)] = annotation
            queries["generative" if kind == "generative" else "discriminative"].append(query)
    for kind, listed in queries.items():
        folder.write_json(f"query/query_{kind}.json", listed)
    numbers = range(1, max(annotations, default=0) + 1)
    folder.write_json("annotations.json", [annotations.get(number, {"id": number}) for number in numbers])
    for file in folder.companions:
        folder.write_text(file.name, file.read_text(encoding="utf-8"))


def write_mmhal(rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write MMHal-Bench."""
    columns = ("question_type", "question_topic", "image_id", "image_src", "question", "gt_answer")
    questions = []
    for row in rows:
        question: dict[str, Any] = {name: row.get_text(name) for name in columns if name in row.values}
        name = Path(row.get_text("image_src")).name
        written = folder.write_image(row, "images", name)
        questions.append({**question, "image_src": written, "image_content": _read_objects(row)})
    folder.write_json("response_template.json", questions)


def _read_objects(row: HubRow) -> list[str]:
    """Read the objects of an image. Tables made by the authors' loading script have them as values of `class`."""
    value = row.values.get(OBJECTS_COLUMN)
    if isinstance(value, Mapping):
        value = value.get("class")
    elif isinstance(value, list):
        value = [each.get("class") if isinstance(each, Mapping) else each for each in value]
    return replace(row, values={**row.values, OBJECTS_COLUMN: value}).get_texts(OBJECTS_COLUMN)


def _read_answer(row: HubRow, *columns: str) -> str:
    answer = row.get_text(*columns).lower()
    if answer not in {each.lower() for each in CONSTANT_ANSWERS.values()}:
        raise row.build_error(f"is {answer!r}, not yes or no", columns[0])
    return answer


LAYOUTS: Mapping[str, Callable[[Iterable[HubRow], OfficialFolder], None]] = {
    "pope": write_pope,
    "mme": write_mme,
    "hallusionbench": write_hallusionbench,
    "mmvp": write_mmvp,
    "dash-b": write_dash_b,
    "amber": write_amber,
    "amber-generative": write_amber,
    "mmhal": write_mmhal,
}


def list_companions(task: str, data: str, folder: Path | None) -> list[Path]:
    """List the official files that a task needs beside its tables.

    Args:
        task: Name of the task.
        data: The value of `--data`.
        folder: Folder of the tables. None for a dataset without one.

    Returns:
        The files.

    Raises:
        InputError: One of them is missing.
    """
    names = COMPANIONS.get(task, ())
    files = [folder / name for name in names] if folder else []
    if missing := [file.name for file in files if not file.is_file()] or ([] if files else names):
        problem = f"{task} also needs {' and '.join(missing)} of the authors' repository"
        place = "in this folder" if folder else "in a folder with the downloaded tables, and name that folder"
        raise InputError(f"{problem}. Put them {place}", folder or data, None, "--data")
    return files


def write_official_folder(task: str, rows: Iterable[HubRow], folder: OfficialFolder) -> None:
    """Write the official files of a task from its rows. A row that cannot be used raises `InputError`.

    Args:
        task: Name of the task.
        rows: The rows.
        folder: The folder.

    Raises:
        EvaluationError: The task has no table on the hub.
    """
    if task not in LAYOUTS:
        raise EvaluationError(f"--data: {task} is not read from tables. It needs a folder with the official files.")
    LAYOUTS[task](rows, folder)
