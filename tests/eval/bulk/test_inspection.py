"""The page of random rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eval.bulk.cli import app
from eval.bulk.inspection import find_content, sample_rows, split_answer
from eval.bulk.items import JobSettings
from eval.bulk.rows import BulkRow, RowClaim
from eval.errors import InputError
from tests.eval.bulk.pictures import answer, draw, write_archive, write_pictures
from tests.eval.fake_server import ScriptedServer, start_server


def make_row(answer: str, *claims: tuple[int | None, int | None]) -> BulkRow:
    placed = [RowClaim(start=start, end=end, probability=0.5) for start, end in claims]
    return BulkRow(
        key="0", id="", source="", prompt="", picture=None, model="m", strategy="verify", answer=answer, claims=placed
    )


def test_page_has_pictures_claims_and_errors(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in", 4)
    (pictures / "<b>.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    with start_server(ScriptedServer(answer)) as server:
        arguments = ["run", str(pictures), "--out", str(out), "--format", "jsonl", "--prompt", "Describe."]
        assert CliRunner().invoke(app, [*arguments, "--base-url", server.url]).exit_code == 0
    result = CliRunner().invoke(app, ["inspect", str(out), "--no-browser", "--seed", "1"])
    assert result.exit_code == 0, result.output
    page = (out / "inspect.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert page.count('style="--hue: 108" title="Is there a cat? 0.900">a cat</span>') == 3
    assert page.count("<s>a dog</s> 0.10") == 3
    assert "too small" in page
    assert "&lt;b&gt;.png" in page
    assert "<b>" not in page


def test_sample_is_random_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    lines = [make_row("x").model_copy(update={"id": str(number)}).model_dump_json() for number in range(50)]
    (tmp_path / "rows" / "part-000000.jsonl").write_text("\n".join(lines[:30]) + "\n")
    (tmp_path / "rows" / "part-000001.jsonl").write_text("\n".join(lines[30:]) + "\n")
    samples = []
    for seed in range(20):
        rows, total = sample_rows(tmp_path, 5, random.Random(seed))
        numbers = [int(row.id) for row in rows]
        assert total == 50
        assert len(set(numbers)) == 5
        assert numbers == sorted(numbers)
        samples += numbers
    assert min(samples) < 5
    assert max(samples) > 45


def test_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows yet"):
        sample_rows(tmp_path, 5, random.Random(0))


def test_answer_is_split_at_its_claims() -> None:
    row = make_row("a cat on a mat", (0, 5), (3, 7), (9, 14), (None, None), (12, 99))
    assert [(span.text, span.claim is not None) for span in split_answer(row)] == [
        ("a cat", True),
        (" on ", False),
        ("a mat", True),
    ]
    assert split_answer(make_row("")) == []


def test_picture_is_found_in_files_lines_and_archives(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    archive = write_archive(tmp_path / "a.tar", 3)
    lines = tmp_path / "in.jsonl"
    lines.write_text("\n".join(json.dumps({"file": f"000{number}.png"}) for number in (1, 0)) + "\n")
    assert find_content(str(tmp_path / "0001.png"), "image") == draw(1)
    assert find_content(f"{archive}::deep/0002", "image") == draw(2)
    assert find_content(f"{lines}::2", "file") == draw(0)
    assert find_content(str(tmp_path / "gone.png"), "image") is None
    assert find_content(f"{tmp_path / 'gone.tar'}::x", "image") is None


def test_settings_of_jobs_name_the_field_that_differs() -> None:
    settings = JobSettings(model="m")
    assert settings.find_difference(settings) is None
    assert settings.find_difference(JobSettings(model="m", seed=1)) == "seed"
