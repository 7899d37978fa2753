"""Questions in the formats of other toolkits. A toolkit that is installed runs them against a server."""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.eval.cli_driver import invoke, invoke_run, output_of
from tests.eval.fake_server import ScriptedServer, prompt_of, strategy_of

SUFFIX = "Please answer this question with one word."


def export(source: str | Path, toolkit: str, out: Path, *options: str) -> Path:
    result = invoke("export", source, "--to", toolkit, "--out", out, *options)
    assert result.exit_code == 0, output_of(result)
    assert {Path(line).exists() for line in result.stdout.splitlines()} == {True}
    return out


def run_toolkit(folder: Path, *arguments: object, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


def require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed, `make test-toolkits` runs this test")


@pytest.mark.parametrize("toolkit", ["lmms-eval", "vlmevalkit", "inspect"])
def test_a_run_exports_its_questions(toolkit: str, server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    invoke_run(server, data, tmp_path / "run", "--limit", "4")
    expected = Counter(prompt_of(request) for request in server.requests)
    export(tmp_path / "run", toolkit, tmp_path / "out")
    found = {"lmms-eval": read_lmms_eval, "vlmevalkit": read_vlmevalkit, "inspect": read_inspect}[toolkit](
        tmp_path / "out"
    )
    assert len(found) == 12
    assert set(expected) <= {question for question, _, _ in found}
    assert all(question.endswith(SUFFIX) for question, _, _ in found)
    assert {label.lower() for _, label, _ in found} == {"yes", "no"}
    known = {file.read_bytes() for file in (data / "images").iterdir()}
    assert {image for _, _, image in found} <= known
    assert "fake:agla" in (tmp_path / "out" / "README.txt").read_text()


def read_lmms_eval(folder: Path) -> list[tuple[str, str, bytes]]:
    group = yaml.safe_load((folder / "onlyseen_pope.yaml").read_text())
    assert group == {"group": "onlyseen_pope",
                     "task": [f"onlyseen_pope_{name}" for name in ("random", "popular", "adversarial")]}  # fmt: skip
    tables = [pq.read_table(file) for file in sorted((folder / "data").glob("*/*.parquet"))]
    features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    rows = [row for table in tables for row in table.to_pylist()]
    return [(row["question"], row["answer"], row["image"]["bytes"]) for row in rows]


def read_vlmevalkit(folder: Path) -> list[tuple[str, str, bytes]]:
    csv.field_size_limit(10**8)
    with (folder / "OnlySeen_POPE.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {row["category"] for row in rows} == {"random", "popular", "adversarial"}
    assert {row["answer"] for row in rows} == {"Yes", "No"}
    contents = {row["index"]: row["image"] for row in rows}
    firsts = [image for image in contents.values() if image not in contents]
    assert len(firsts) == len(set(firsts)) < len(rows)
    return [(row["question"], row["answer"], base64.b64decode(contents.get(row["image"], row["image"])))
            for row in rows]  # fmt: skip


def read_inspect(folder: Path) -> list[tuple[str, str, bytes]]:
    samples = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len({sample["id"] for sample in samples}) == len(samples)
    found: list[tuple[str, str, bytes]] = []
    for sample in samples:
        image, text = sample["input"][0]["content"]
        found.append((text["text"], sample["target"], (folder / image["image"]).read_bytes()))
    return found


def test_a_task_exports_its_questions_without_a_run(data: Path, tmp_path: Path) -> None:
    export(data, "inspect", tmp_path / "out", "--task", "pope", "--limit", "2")
    assert len((tmp_path / "out" / "questions.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "inspect", "--task", "chair"], "chair has no yes/no questions"),
        (["--to", "inspect", "--strategy", "plain"], "give one of them"),
        ([], "give one of them"),
        (["--strategy", "plain", "--task", "pope"], "--task, --limit: use them with --to"),
        (["--to", "inspect", "--limit", "3"], "--limit: use it with --task"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], message: str, data: Path, tmp_path: Path) -> None:
    assert message in output_of(invoke("export", data, "--out", tmp_path / "out", *arguments))


def test_a_folder_with_files_is_refused(data: Path, tmp_path: Path) -> None:
    result = invoke("export", data, "--to", "inspect", "--task", "pope", "--out", data)
    assert "is not empty" in output_of(result)


def test_lmms_eval_runs_an_exported_folder(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    require("lmms_eval")
    folder = export(data, "lmms-eval", tmp_path / "out", "--task", "pope", "--limit", "4")
    model = f"model_version=fake:agla,base_url={server.url}/v1,timeout=60,num_concurrent=4"
    command = ("-m", "lmms_eval", "--model", "openai", "--tasks", "onlyseen_pope", "--include_path", folder)
    options = ("--model_args", model, "--log_samples", "--output_path", tmp_path / "logs")
    run_toolkit(tmp_path, *command, *options, OPENAI_API_KEY="none", LMMS_EVAL_HOME=str(tmp_path / "home"))
    assert len(server.requests) == 12
    assert {strategy_of(request) for request in server.requests} == {"agla"}
    assert all(prompt_of(request).endswith(SUFFIX) for request in server.requests)
    [file] = (tmp_path / "logs").rglob("*results.json")
    results: dict[str, Any] = json.loads(file.read_text())["results"]
    assert 0 < results["onlyseen_pope_random"]["pope_accuracy,none"] <= 1


def test_inspect_ai_runs_an_exported_folder(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    require("inspect_ai")
    folder = export(data, "inspect", tmp_path / "out", "--task", "pope", "--limit", "4")
    command = ("-m", "inspect_ai", "eval", "onlyseen_pope.py", "--model", "openai-api/onlyseen/fake:agla")
    options = ("--log-format", "json", "--log-dir", tmp_path / "logs", "--display", "plain")
    keys = {"ONLYSEEN_BASE_URL": f"{server.url}/v1", "ONLYSEEN_API_KEY": "none"}
    run_toolkit(folder, *command, *options, XDG_DATA_HOME=str(tmp_path / "home"), **keys)
    [file] = (tmp_path / "logs").glob("*.json")
    log = json.loads(file.read_text())
    assert (log["status"], len(log["samples"])) == ("success", 12)
    assert {strategy_of(request) for request in server.requests} == {"agla"}
    assert all(prompt_of(request).endswith(SUFFIX) for request in server.requests)
    [score] = log["results"]["scores"]
    right = sum(sample["scores"]["match"]["value"] == "C" for sample in log["samples"])
    assert score["metrics"]["accuracy"]["value"] == pytest.approx(right / 12)


VLMEVALKIT_SCRIPT = """
import json, sys
from vlmeval.api.gpt import GPT4V
from vlmeval.dataset.image_yorn import ImageYORNDataset
from vlmeval.smp import dump

config = json.load(open(sys.argv[1] + "/config.json"))
[(name, data)] = config["data"].items()
assert data.pop("class") == "ImageYORNDataset"
dataset = ImageYORNDataset(**data)
model = config["model"]["onlyseen"]
assert model.pop("class") == "GPT4V"
model = GPT4V(**{**model, "model": "fake:agla", "api_base": sys.argv[2] + "/v1/chat/completions"})
table = dataset.data
table["prediction"] = [model.generate(dataset.build_prompt(row)) for _, row in table.iterrows()]
table = table.drop(columns=["image"])
dump(table, f"{name}.tsv")
print(dataset.evaluate(f"{name}.tsv").to_json(orient="records"))
"""


def test_vlmevalkit_runs_an_exported_folder(server: ScriptedServer, data: Path, tmp_path: Path) -> None:
    require("vlmeval")
    folder = export(data, "vlmevalkit", tmp_path / "out", "--task", "pope", "--limit", "4")
    output = run_toolkit(tmp_path, "-c", VLMEVALKIT_SCRIPT, folder, server.url, LMUData=str(folder))
    assert len(server.requests) == 12
    assert {strategy_of(request) for request in server.requests} == {"agla"}
    assert all(prompt_of(request).endswith(SUFFIX) for request in server.requests)
    rows = json.loads(output.splitlines()[-1])
    assert {row["split"] for row in rows} == {"Overall", "random", "popular", "adversarial"}
    assert all(0 < row["acc"] <= 100 for row in rows)
