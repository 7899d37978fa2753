"""Options and data that `eval run` refuses before it sends a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eval.errors import ServerUnavailable
from eval.runs.client import EvalClient
from tests.eval.cli_driver import invoke, invoke_run, output_of
from tests.eval.fake_server import ScriptedServer


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--strategies", "agla,vcdd"], "no strategy 'vcdd'"),
        (["--strategies", "agla:aplha=1"], "no parameter 'aplha'"),
        (["--strategies", "alpha=1"], "before any strategy"),
        (["--strategies", "agla+vhr:alpha=1"], "must have the form agla.alpha=..."),
        (["--strategies", "agla+agla"], "twice"),
        (["--model", "other"], "no 'other'"),
        (["--seeds", "a"], "must have the form 0,1,2"),
        (["--shard", "3/2"], "from 1 to the second"),
        (["--parser", "nobody"], "no parser 'nobody'"),
        (["--data", "/nowhere"], "no such folder"),
        (["--base-url", "localhost"], "must begin with http"),
    ],
)
def test_invalid_options_are_refused_before_any_request(
    server: ScriptedServer, data: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    result = invoke_run(server, data, tmp_path / "run", *arguments)
    assert result.exit_code != 0
    assert problem in output_of(result)
    assert not server.requests


def remove_captions(data: Path) -> None:
    (data / "captions.json").unlink()


def turn_ids_into_strings(data: Path) -> None:
    file = data / "captions.json"
    file.write_text(file.read_text().replace('"image_id": 2', '"image_id": "2"'))


def break_image(data: Path) -> None:
    (data / "images" / "000000000002.png").write_bytes(b"not an image")


def add_second_file_of_a_split(data: Path) -> None:
    (data / "pope" / "aokvqa_pope_random.json").write_bytes((data / "pope" / "random.jsonl").read_bytes())


@pytest.mark.parametrize(
    ("task", "damage", "problem"),
    [
        ("chair", remove_captions, "scenes: has no captions"),
        (
            "chair",
            turn_ids_into_strings,
            'captions.json: field "annotations[1].image_id": is a string, but the instances',
        ),
        ("chair", break_image, "000000000002.png: is not an image"),
        ("pope", add_second_file_of_a_split, "split random (aokvqa_pope_random.json, random.jsonl)"),
    ],
)
def test_unusable_data_are_refused_before_any_request(
    server: ScriptedServer, data: Path, tmp_path: Path, task: str, damage: Callable[[Path], None], problem: str
) -> None:
    damage(data)
    result = invoke_run(server, data, tmp_path / "run", task=task)
    assert result.exit_code != 0
    assert problem in output_of(result)
    assert not server.requests


def test_a_missing_table_of_synonyms_is_refused(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    result = invoke_run(server, data, tmp_path / "run", "--synonyms", str(tmp_path / "none.txt"), task="chair")
    assert "none.txt: No such file" in output_of(result)
    assert not server.requests


def test_a_missing_image_is_reported_with_its_line(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    (data / "images" / "000000000002.png").unlink()
    result = invoke_run(server, data, tmp_path / "run")
    assert 'random.jsonl:7: field "image": there is no image 000000000002.png' in output_of(result)


def test_the_default_address_is_that_of_make_serve(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str] = []

    async def fail(client: EvalClient) -> dict[str, str | None]:
        addresses.append(client.base_url)
        raise ServerUnavailable("server is down")

    monkeypatch.setattr(EvalClient, "list_models", fail)
    assert "server is down" in output_of(invoke("run", "pope", "--data", data, "--out", tmp_path / "run"))
    assert addresses == ["http://127.0.0.1:8000"]
