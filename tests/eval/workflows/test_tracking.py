"""Export of a finished run to experiment trackers, with small modules in the place of their packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.eval.cli_driver import invoke, invoke_run, output_of, read_results
from tests.eval.fake_server import ScriptedServer


class FakeRun:
    """A run of wandb."""

    url = None
    dir = "offline-run-1"

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.summary: dict[str, Any] = {}
        self.saved: list[str] = []
        self.is_finished = False

    def save(self, file: str, base_path: str, policy: str) -> None:
        assert (Path(file).parent, policy) == (Path(base_path), "now")
        self.saved.append(Path(file).name)

    def finish(self) -> None:
        self.is_finished = True


class FakeClient:
    """A client of mlflow that has no experiment yet."""

    def __init__(self, tracking_uri: str | None) -> None:
        self.tracking_uri = tracking_uri
        self.calls: list[tuple[Any, ...]] = []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        self.calls.append(("experiment", name))
        return "7"

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment_id}-{run_name}"))

    def log_param(self, *values: Any) -> None:
        self.calls.append(("param", *values))

    def log_metric(self, *values: Any) -> None:
        self.calls.append(("metric", *values))

    def log_artifact(self, *values: Any) -> None:
        self.calls.append(("artifact", *values))

    def set_terminated(self, run_id: str) -> None:
        self.calls.append(("end", run_id))


@pytest.fixture
def out(server: ScriptedServer, data: Path, tmp_path: Path) -> Path:
    assert invoke_run(server, data, tmp_path / "run", "--strategies", "agla:alpha=1.0", "--limit", "6").exit_code == 0
    return tmp_path / "run"


def find_accuracy(out: Path) -> float:
    row = next(row for row in read_results(out)["scopes"][0]["rows"] if row["strategy"] == "agla:alpha=1.0")
    return float(row["metrics"]["accuracy"]["value"])


def test_wandb_receives_settings_metrics_and_files(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []
    module = ModuleType("wandb")
    module.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    result = invoke("track", out, "--to", "wandb", "--project", "p", "--location", tmp_path / "offline")
    assert result.exit_code == 0, output_of(result)
    assert "offline-run-1" in output_of(result)
    [run] = runs
    assert (run.options["project"], run.options["mode"], run.options["name"]) == ("p", "offline", "run")
    assert run.options["config"]["model"] == "fake"
    assert run.summary["random/agla_alpha_1.0/accuracy"] == find_accuracy(out)
    assert "random/agla_alpha_1.0/accuracy_minus_plain" in run.summary
    assert None not in run.summary.values()
    assert run.saved == ["results.json", "manifest.json", "report.md", "report.html"]
    assert run.is_finished


def test_mlflow_receives_settings_metrics_and_files(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[FakeClient] = []
    module = ModuleType("mlflow")
    module.MlflowClient = lambda tracking_uri: clients.append(FakeClient(tracking_uri)) or clients[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    result = invoke("track", out, "--to", "mlflow", "--project", "p", "--location", "file:///store")
    assert result.exit_code == 0, output_of(result)
    [client] = clients
    assert client.tracking_uri == "file:///store"
    assert client.calls[0] == ("experiment", "p")
    assert ("param", "7-run", "task", "pope") in client.calls
    assert ("metric", "7-run", "random/agla_alpha_1.0/accuracy", find_accuracy(out)) in client.calls
    assert ("artifact", "7-run", str(out / "results.json")) in client.calls
    assert client.calls[-1] == ("end", "7-run")


def test_a_missing_package_is_named_with_its_extra(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = invoke("track", out, "--to", "wandb")
    assert result.exit_code == 1
    assert "pip install '.[wandb]'" in output_of(result)


def test_a_folder_without_results_is_refused(out: Path) -> None:
    (out / "results.json").write_text("{}")
    assert 'results.json: not results: field "task"' in output_of(invoke("track", out, "--to", "mlflow"))
    (out / "results.json").unlink()
    assert "results.json: no such file" in output_of(invoke("track", out, "--to", "mlflow"))
