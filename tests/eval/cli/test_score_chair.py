"""The command `score chair`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.eval.cli_driver import run_process, write_jsonl
from tests.eval.coco_data import CAPTIONS

KEYS = ["chair_s", "chair_i", "recall", "len", "n", "hallucinated_captions", "hallucinated_mentions", "mentions"]


def test_json_and_per_caption_output_have_all_keys(tmp_path: Path, annotations: Path, synonyms: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", CAPTIONS)
    process = run_process(
        *("score", "chair", "--captions", captions, "--annotations", annotations, "--synonyms", synonyms),
        *("--variant", "original", "--json", "--per-caption", tmp_path / "each.jsonl"),
    )
    assert process.returncode == 0
    assert process.stderr == f"warning: {captions}: 1 captions are of an image that has another caption. All count\n"
    output = json.loads(process.stdout)
    assert list(output) == [*KEYS, "fixed"]
    assert (output["chair_i"], output["len"]) == (3 / 7, 8.0)
    assert (list(output["fixed"]), output["fixed"]["mentions"]) == (KEYS, 10)
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert each[0] == {
        "image_id": 1,
        "words": ["woman", "dog", "cat"],
        "nodes": ["person", "dog", "cat"],
        "hallucinated": [["cat", "cat"]],
        "gt_nodes": ["dog", "person"],
        "caption": CAPTIONS[0]["caption"],
        "mentions": locate(CAPTIONS[0]["caption"], {"woman": False, "dog": False, "cat": True}),
    }
    empty = {"words": [], "nodes": [], "hallucinated": [], "gt_nodes": [], "mentions": []}
    assert each[2] == {"image_id": 3, "caption": CAPTIONS[2]["caption"], **empty}


def locate(caption: Any, words: dict[str, bool]) -> list[dict[str, object]]:
    starts = {word: caption.lower().index(word) for word in words}
    return [
        {"start": starts[word], "end": starts[word] + len(word), "hallucinated": is_hallucinated}
        for word, is_hallucinated in words.items()
    ]


def test_an_unwritable_file_is_reported(tmp_path: Path, annotations: Path, synonyms: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", CAPTIONS[:1])
    line = ("score", "chair", "--captions", captions, "--annotations", annotations, "--synonyms", synonyms)
    process = run_process(*line, "--per-caption", tmp_path / "none" / "each.jsonl")
    assert (process.returncode, process.stderr) == (
        1,
        f"error: {tmp_path}/none/each.jsonl: No such file or directory\n",
    )


def test_fixed_and_breakdown_are_printed(tmp_path: Path, annotations: Path, synonyms: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", CAPTIONS)
    line = (
        "score",
        "chair",
        "--captions",
        captions,
        "--annotations",
        annotations,
        "--synonyms",
        synonyms,
        "--breakdown",
    )
    found = json.loads(run_process(*line, "--json").stdout)
    assert list(found) == [*KEYS, "fixed", "by_category", "by_position"]
    assert found["fixed"]["mentions"] == 10
    assert found["by_category"][0]["node"] == "cup"
    assert found["by_category"][0]["co_occurring"] == {"bus": 1, "stop sign": 1}
    assert sum(part["hallucinated"] for part in found["by_position"]) == found["hallucinated_mentions"]
    table = run_process(*line).stdout
    assert table.split()[:2] == ["original", "fixed"]
    assert ["cup", "2", "2", "bus,", "stop", "sign"] in [row.split() for row in table.splitlines()]
    assert "0% to 10%" in table


def test_array_of_captions_is_scored_with_default_synonyms(tmp_path: Path, annotations: Path, synonyms: Path) -> None:
    captions = tmp_path / "c.json"
    captions.write_text(json.dumps(CAPTIONS))
    process = run_process("score", "chair", "--captions", captions, "--annotations", annotations, "--json")
    assert json.loads(process.stdout)["mentions"] == 7
    assert "chair_s" in run_process("score", "chair", "--captions", captions, "--annotations", annotations).stdout


def test_empty_captions_are_scored_with_a_warning(tmp_path: Path, annotations: Path, synonyms: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": 1, "caption": ""}])
    process = run_process("score", "chair", "--captions", captions, "--annotations", annotations, "--json")
    assert json.loads(process.stdout)["n"] == 1
    assert f"warning: {captions}: 1 captions are empty" in process.stderr


def test_both_kinds_of_annotations_are_required(tmp_path: Path, annotations: Path, synonyms: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", CAPTIONS)
    (annotations / "captions_val2014.json").unlink()
    process = run_process("score", "chair", "--captions", captions, "--annotations", annotations)
    assert (process.returncode, process.stderr) == (1, f"error: {annotations}: has no captions_*.json\n")
    process = run_process("score", "chair", "--captions", captions, "--annotations", tmp_path / "none")
    assert process.stderr == f"error: {tmp_path / 'none'}: is not a folder\n"
