"""The task `pope` on official files about other images than those of COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results, write_jsonl
from tests.eval.fake_server import ScriptedServer

SPLITS = ("random", "popular", "adversarial")


def build_rows(images: tuple[str, ...]) -> list[dict[str, Any]]:
    """Build official rows: three questions with the label yes and three with the label no about each image."""
    objects = ("bird", "wall", "grass", "laptop", "cat", "remote")
    return [
        {"question_id": 6 * at + number + 1, "image": image, "text": f"Is there a {name} in the image?", "label": label}
        for at, image in enumerate(images)
        for number, (name, label) in enumerate(zip(objects, ["yes"] * 3 + ["no"] * 3, strict=True))
    ]


def write_images(folder: Path, images: tuple[str, ...]) -> None:
    folder.mkdir()
    for number, name in enumerate(images):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)


@pytest.mark.parametrize(
    ("prefix", "folder", "images", "title"),
    [
        ("aokvqa_pope_seem", "val2014", ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"), "A-OKVQA"),
        ("gqa_pope_seem", "images", ("2405722.jpg", "1339.jpg"), "GQA"),
        ("gqa_pope", "images", ("2405722.jpg", "1339.jpg"), "GQA"),
    ],
)
def test_official_files_about_other_images_are_run(
    server: ScriptedServer, tmp_path: Path, prefix: str, folder: str, images: tuple[str, ...], title: str
) -> None:
    """The files of the authors are indented arrays, and later copies of them are JSON lines."""
    data = tmp_path / "data"
    data.mkdir()
    write_images(data / folder, images)
    rows = build_rows(images)
    for split in SPLITS[:2]:
        (data / f"{prefix}_{split}.json").write_text(json.dumps(rows, indent=4))
    write_jsonl(data / f"{prefix}_adversarial.json", rows)
    out = tmp_path / "run"
    result = invoke_run(server, data, out, "--strategies", "vhr")
    assert result.exit_code == 0, output_of(result)
    results = read_results(out)
    assert results["title"] == f"POPE on {title}"
    assert [(each["questions"], each["images"]) for each in results["scopes"]] == [(12, 2)] * 3 + [(36, 2)]
    assert [row["strategy"] for row in results["scopes"][-1]["constant_rows"]] == ["all yes", "all no"]
    assert "log-probabilities" in results["missing_bias"]
    assert invoke("verify", out).exit_code == 0


def test_splits_of_different_images_are_refused(server: ScriptedServer, tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("1.jpg",))
    rows = build_rows(("1.jpg",))
    write_jsonl(tmp_path / "aokvqa_pope_seem_random.json", rows)
    write_jsonl(tmp_path / "gqa_pope_seem_popular.json", rows)
    result = invoke_run(server, tmp_path, tmp_path / "run")
    assert "different sets of images (aokvqa_pope_seem_random.json, gqa_pope_seem_popular.json)" in output_of(result)
    assert not server.requests
