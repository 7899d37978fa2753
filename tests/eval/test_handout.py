"""What a run hands out scores as the run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.eval.fake_server import FakeServer
from tests.eval.runs import invoke, results, run, told


def test_pope(server: FakeServer, data: Path, tmp_path: Path) -> None:
    run(server, data, tmp_path / "run", "--strategies", "agla")
    assert invoke("export", tmp_path / "run", "--strategy", "agla", "--out", tmp_path / "out").exit_code == 0
    for part in results(tmp_path / "run")["parts"][:3]:
        name = f"{part['scope']}.jsonl"
        files = ("--questions", data / "pope" / name, "--answers", tmp_path / "out" / name)
        scored = json.loads(invoke("score", "pope", *files, "--json").output)
        values = {key: each["value"] for key, each in part["rows"][1]["metrics"].items()}
        assert values == pytest.approx({key: scored[key] for key in values})
    unknown = invoke("export", tmp_path / "run", "--strategy", "vcd", "--out", tmp_path / "out")
    assert "has no 'vcd'. It has plain, agla." in told(unknown)


def test_mme(server: FakeServer, tmp_path: Path) -> None:
    for subtask in ("existence", "count", "position", "color"):
        for number in range(4):
            picture = tmp_path / "mme" / subtask / f"{number:04d}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, len(subtask), 0)).save(picture)
            rows = [f"Is there a dog, {turn}? Please answer yes or no.\t{turn}\n" for turn in ("Yes", "No")]
            picture.with_suffix(".txt").write_text("".join(rows))
    result = run(server, tmp_path / "mme", tmp_path / "run", "--strategies", "vhr", task="mme")
    assert result.exit_code == 0, told(result)
    assert invoke("export", tmp_path / "run", "--strategy", "plain", "--out", tmp_path / "out").exit_code == 0
    scored = json.loads(invoke("score", "mme", "--results", tmp_path / "out", "--json").output)["mme"]
    for part in results(tmp_path / "run")["parts"][:4]:
        assert 100 * part["rows"][0]["metrics"]["score"]["value"] == pytest.approx(scored[part["scope"]])
