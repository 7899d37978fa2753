"""`eval track`: send the results of a finished run to an experiment tracker. Its package is imported on use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.core.results import Results
from eval.errors import EvaluationError
from eval.runs.manifest import read_manifest
from eval.workflows.run_directory import RunDirectory

ARTIFACTS = ("results.json", "manifest.json", "report.md", "report.html")
NAME_CHARACTERS = "_-. "  # beside letters and digits, which both trackers accept in names of metrics


@dataclass(frozen=True)
class TrackedRun:
    """The data of a run that a tracker receives.

    Attributes:
        name: Name of the run.
        settings: Model, task, decoding, and the hashes of the manifest.
        metrics: Values by scope, strategy and metric, separated by slashes.
        files: Results and reports.
    """

    name: str
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    files: tuple[Path, ...]


def track_run(path: Path, tracker: str, project: str, location: str | None = None) -> str:
    """Send a finished run to a tracker.

    Args:
        path: Folder of the run.
        tracker: A name of `TRACKERS`.
        project: Project of wandb, experiment of mlflow.
        location: wandb: folder of an offline run. mlflow: tracking URI. None uses the settings of the tracker.

    Returns:
        Where the tracker keeps the run.

    Raises:
        EvaluationError: The package of the tracker is not installed. A folder without results raises it as well.
    """
    run = read_tracked_run(path)
    try:
        package = importlib.import_module(tracker)
    except ImportError as error:
        hint = f"pip install '.[{tracker}]'"
        raise EvaluationError(
            f"--to {tracker}: the package cannot be imported ({error}). Use {hint} in the folder of OnlySeen."
        ) from None
    return TRACKERS[tracker](package, run, project, location)


def read_tracked_run(path: Path) -> TrackedRun:
    """Read results and manifest of a run. A folder without them raises `InputError`.

    Args:
        path: Folder of the run.

    Returns:
        The data for a tracker.
    """
    manifest, results = read_manifest(path), RunDirectory(path).load_results()
    plan = manifest.plan
    settings = {
        "task": plan.task,
        "model": plan.model,
        "weights": plan.weights or "",
        "server": manifest.server,
        "temperature": f"{plan.sampling.temperature:g}",
        "top_p": f"{plan.sampling.top_p:g}",
        "max_tokens": str(plan.sampling.max_tokens),
        "seeds": ",".join(map(str, plan.effective_seeds)),
        "strategies": ", ".join(plan.labels),
        "complete": str(results.complete),
        **{f"{name}_sha256": getattr(manifest, name) for name in ("images", "ids", "prompts", "answers")},
    }
    files = tuple(file for name in ARTIFACTS if (file := path / name).is_file())
    return TrackedRun(path.resolve().name, settings, collect_metrics(results), files)


def collect_metrics(results: Results) -> dict[str, float]:
    """Collect values, bounds of intervals, differences to plain and costs. Numbers without a value are left out."""
    found: dict[str, float | None] = {}
    for scope in results.scopes:
        for row in scope.rows:
            place = f"{_clean_name(scope.scope)}/{_clean_name(row.strategy)}"
            for name, estimate in row.metrics.items():
                found[f"{place}/{name}"] = estimate.value
                found[f"{place}/{name}_low"], found[f"{place}/{name}_high"] = estimate.low, estimate.high
            for name, difference in row.against_plain.items():
                found[f"{place}/{name}_minus_plain"] = difference.value
                found[f"{place}/{name}_p"] = difference.effective_p
    for cost in results.costs:
        place = f"cost/{_clean_name(cost.strategy)}"
        found[f"{place}/passes_per_token"] = cost.passes_per_token.value if cost.passes_per_token else None
        found[f"{place}/tokens_per_second"] = cost.tokens_per_second.value
    return {name: value for name, value in found.items() if value is not None}


def _clean_name(text: str) -> str:
    """Replace the characters that a tracker refuses in names of metrics, such as those of `agla:alpha=1`."""
    return "".join(char if char.isascii() and (char.isalnum() or char in NAME_CHARACTERS) else "_" for char in text)


def _send_to_wandb(wandb: Any, run: TrackedRun, project: str, location: str | None) -> str:
    options = {} if location is None else {"mode": "offline", "dir": location}
    if location is not None:
        Path(location).mkdir(parents=True, exist_ok=True)
    tracked = wandb.init(project=project, name=run.name, config=dict(run.settings), **options)
    tracked.summary.update(dict(run.metrics))
    for file in run.files:
        tracked.save(str(file), base_path=str(file.parent), policy="now")
    tracked.finish()
    return str(tracked.url or tracked.dir)


def _send_to_mlflow(mlflow: Any, run: TrackedRun, project: str, location: str | None) -> str:
    client = mlflow.MlflowClient(tracking_uri=location)
    experiment = client.get_experiment_by_name(project)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(project)
    run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
    for name, text in run.settings.items():
        client.log_param(run_id, name, text)
    for name, value in run.metrics.items():
        client.log_metric(run_id, name, value)
    for file in run.files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id)
    return f"experiment {experiment_id}, run {run_id}"


TRACKERS: Mapping[str, Callable[[Any, TrackedRun, str, str | None], str]] = {
    "wandb": _send_to_wandb,
    "mlflow": _send_to_mlflow,
}
