"""A made-up table, from its settings and published numbers to the numbers side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.benchmarks.registry import load_task
from eval.core.task import TaskOptions
from eval.errors import EvaluationError, InputError
from eval.published.records import PublishedRecord, read_records
from eval.published.settings import list_tables, load_settings
from eval.runs.stack_spec import parse_spec
from tests.eval.cli_driver import ROOT, invoke, output_of, read_results
from tests.eval.fake_server import ScriptedServer

PUBLISHED = Path(os.environ.get("PUBLISHED_TABLES", ROOT.parent / "shared/data/paper_results.yaml"))
PAI_SETTINGS = """
title = "Made up, with the numbers of PAI"
paper = "HGAI"
task = "chair"
model = "LLaVA-1.5-7B"
strategies = { pai = "vhr" }
max_tokens = 8

[[columns]]
scope = "captions"
benchmarks = ["CHAIR coco"]
metrics = { chair_s = "chair_s" }
"""
SETTINGS = """
title = "Made up, Table 1"
paper = "Own"
task = "pope"
model = "Painter-7B"
strategies = { contrast = "vcd:alpha=0.5" }
temperature = 1.0
seeds = "0,1"
max_tokens = 8
limit = 12
note = "Nobody has published this table."

[[columns]]
scope = "random"
benchmarks = ["POPE scenes"]
splits = ["random"]
metrics = { acc = "accuracy", f1 = "f1" }
"""
RECORDS: list[dict[str, Any]] = [
    {
        "paper": "Other", "arxiv": "2502.00002", "table": "Table 9", "source": "notes", "verified": False,
        "model": "Painter-7B", "decoding": "greedy", "benchmark": "POPE scenes", "split": "random", "baseline": "base",
        "rows": {"base": {"acc": 70.0}, "contrast": {"acc": 69.0}, "else": {"acc": 99.0}},
    },
    {
        "paper": "Own", "arxiv": "2501.00001", "table": "Table 1", "source": "the paper", "verified": True,
        "model": "Painter-7B", "decoding": "sampling", "benchmark": "POPE scenes", "split": "random",
        "note": "made up", "baseline": "regular",
        "rows": {"regular": {"acc": 80.5, "f1": 79.0}, "contrast": {"acc": 84.0, "f1": None}},
    },
]  # fmt: skip
UNRELATED = [
    {**RECORDS[1], "model": "Painter-13B"},
    {**RECORDS[1], "split": "popular"},
    {**RECORDS[1], "benchmark": "POPE coco"},
]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "table.toml").write_text(SETTINGS)
    return tmp_path / "table.toml"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "tables.yaml").write_text(yaml.safe_dump({"records": RECORDS + UNRELATED}))
    return tmp_path / "tables.yaml"


def reproduce(server: ScriptedServer, out: Path, *arguments: str | Path) -> Any:
    return invoke(
        "reproduce", "--base-url", server.url, "--data", "embedded", "--retries", "0", "--out", out, *arguments
    )


def test_a_made_up_table_on_the_embedded_scenes(
    server: ScriptedServer, settings: Path, tables: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = reproduce(server, out, settings, "--tables", tables)
    assert result.exit_code == 0, output_of(result)
    assert {request["max_tokens"] for request in server.requests} == {8}
    assert {request["temperature"] for request in server.requests} == {1.0}
    assert {"strategy": "vcd", "vcd": {"alpha": 0.5}} in [request["decoding"] for request in server.requests]
    results = read_results(out)
    assert results["seeds"] == [0, 1]
    [scope] = [each for each in results["scopes"] if each["scope"] == "random"]
    written = json.loads((out / "reproduction.json").read_text())
    numbers = {(each["metric"], each["row"]): each for each in written["numbers"]}
    assert list(numbers) == [
        (metric, row)
        for metric in ("Accuracy", "F1")
        for row in ("plain", "contrast", "contrast - plain", "all yes", "all no")
    ]
    assert numbers["Accuracy", "all no"]["value"]["value"] == 50
    accuracy = scope["rows"][0]["metrics"]["accuracy"]
    assert numbers["Accuracy", "plain"]["value"]["value"] == pytest.approx(100 * accuracy["value"])
    assert numbers["Accuracy", "plain"]["value"]["low"] == pytest.approx(100 * accuracy["low"])
    published = {key: [each["value"] for each in number["published"]] for key, number in numbers.items()}
    assert published["Accuracy", "plain"] == [80.5, 70.0]
    assert published["Accuracy", "contrast"] == [84.0, 69.0]
    assert published["Accuracy", "contrast - plain"] == [3.5, -1.0]
    assert published["F1", "plain"] == [79.0]
    assert published["F1", "contrast"] == []
    assert [each["paper"] for each in written["sources"]] == ["Own", "Other"]
    text = (out / "reproduction.md").read_text()
    assert "The table is about Painter-7B, and the server has fake." in text
    assert "Nobody has published this table." in text
    assert "| +3.5 (1) |" in text
    assert "2. Other (arXiv:2502.00002), Table 9, POPE scenes random; greedy; read in: notes (not verified)" in text
    assert "random: 12 questions" not in text
    assert "read in: the paper; made up" in output_of(result)


def test_a_smaller_limit_is_stated(server: ScriptedServer, settings: Path, tmp_path: Path) -> None:
    result = reproduce(server, tmp_path / "run", settings, "--limit", "4", "--no-controls")
    assert result.exit_code == 0, output_of(result)
    text = (tmp_path / "run" / "reproduction.md").read_text()
    assert "instead of 12" in text
    assert "| n/a | n/a |" in text


def test_shipped_settings_name_tasks_metrics_and_strategies(tmp_path: Path) -> None:
    assert {"vhr-chair", "vcd-pope"} <= set(list_tables())
    for name in list_tables():
        settings = load_settings(name)
        task = load_task(settings.task, tmp_path, TaskOptions(parser=settings.parser, variant=settings.variant))
        metrics = {metric.name for metric in task.metrics}
        for part in settings.columns:
            assert set(part.metrics.values()) <= metrics
        assert all(parse_spec(text).label for text in settings.strategies.values())
    assert "vhr-chair: VHR" in output_of(invoke("reproduce", "list"))


@pytest.fixture(scope="module")
def published() -> list[PublishedRecord]:
    if not PUBLISHED.is_file():
        pytest.skip("the file of published numbers is not part of this repository")
    return read_records(PUBLISHED)


def test_all_published_numbers_are_read_and_each_table_has_its_own(published: list[PublishedRecord]) -> None:
    assert (len(published), sum(len(row) for each in published for row in each.rows.values())) == (327, 4653)
    assert all(each.source for each in published)
    assert sum(each.verified for each in published) == 285
    for name in list_tables():
        settings = load_settings(name)
        found = [each for each in published if (each.paper, each.model) == (settings.paper, settings.model)]
        for part in settings.columns:
            rows = {row for each in found if each.benchmark in part.benchmarks for row in each.rows}
            assert set(settings.strategies) <= rows


def test_all_numbers_of_a_method_stand_beside_ours(
    published: list[PublishedRecord],
    server: ScriptedServer,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Authors print 22.8 to 42.4 as CHAIR_s of PAI on LLaVA-1.5-7B."""
    monkeypatch.setattr("eval.published.records.read_records", lambda file: published)
    (tmp_path / "table.toml").write_text(PAI_SETTINGS)
    result = reproduce(server, tmp_path / "run", tmp_path / "table.toml", "--tables", PUBLISHED, "--data", data)
    assert result.exit_code == 0, output_of(result)
    written = json.loads((tmp_path / "run" / "reproduction.json").read_text())
    numbers = {each["row"]: [one["value"] for one in each["published"]] for each in written["numbers"]}
    assert {22.8, 24.2, 28.8, 31.8, 42.4} <= set(numbers["pai"])
    assert {each["paper"] for each in written["sources"]} >= {"VISTA", "HGAI", "AdaIAT"}


def test_unknown_tables_and_files_are_refused(server: ScriptedServer, settings: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no table 'vhr'\. Choose one of vhr-chair"):
        load_settings("vhr")
    settings.write_text(SETTINGS.replace("max_tokens = 8", ""))
    with pytest.raises(InputError, match='field "max_tokens": Field required'):
        load_settings(str(settings))
    settings.write_text("title =")
    with pytest.raises(InputError, match="is not TOML"):
        load_settings(str(settings))
    settings.write_text(SETTINGS.replace('"pope"', '"mmhal"'))
    result = reproduce(server, tmp_path / "run", settings)
    assert "need a judge" in output_of(result)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("records: [", ":1: is not YAML"),
        ("[]", 'field "records": must be a list of records'),
        ("records: [{paper: Own}]", 'field "records[0]": field "source": Field required'),
    ],
)
def test_files_of_records_are_checked(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "tables.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as refused:
        read_records(file)
    assert message in str(refused.value)
