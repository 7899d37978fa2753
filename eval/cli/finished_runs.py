"""The commands that read finished runs, from `verify` to `export`.

Functions import their modules when they are called, so that `--help` does not load statistics and plots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from eval.cli.summary import build_judge_settings, print_summary, resolve_labels, warn


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of the run.")],
    data: Annotated[str | None, typer.Option(help="Current data folder, if it has moved.")] = None,
) -> None:
    """Score the stored answers again and compare every number to the last digit."""
    from eval.workflows.verification import verify_run

    differences = verify_run(folder, data)
    for difference in differences:
        typer.echo(difference, err=True)
    if differences:
        raise typer.Exit(1)
    typer.echo(f"{folder}: files, images, answers and numbers are unchanged.")


def judge(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of mmhal.")],
    judge_url: Annotated[str, typer.Option(help="Address of the judge: an OpenAI-compatible server, with /v1.")],
    judge_model: Annotated[str, typer.Option(help="Model name of the judge.")],
    judge_api_key: Annotated[
        str | None, typer.Option(envvar="JUDGE_API_KEY", help="API key of the judge.", show_default=False)
    ] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="File with another prompt of the judge. {names} are fields of a row.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    data: Annotated[str | None, typer.Option(help="Current data folder, if it has moved.")] = None,
) -> None:
    """Have the stored answers of a run rated by a judge model, without the server of the answers."""
    from eval.benchmarks.llm_judge import Judge
    from eval.workflows.judging import judge_run

    model = Judge(judge_url, judge_model, judge_api_key)
    settings = build_judge_settings(model, judge_prompt)
    assert settings is not None
    results = judge_run(folder, settings, model, concurrency, Console(stderr=True), data)
    print_summary(results, folder / "report.html")


def rescore(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run of pope.")],
    labels: Annotated[
        str, typer.Option(help="File or folder with other labels, or `repope` for RePOPE's files in the data folder.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: beside the run.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept labels of questions that are not part of the run.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="Current data folder, if it has moved.")] = None,
) -> None:
    """Score the stored answers of a run with other labels, without a server."""
    from eval.workflows.rescoring import rescore_run

    target = out or folder.with_name(f"{folder.resolve().name}-{Path(labels).stem}")
    results = rescore_run(
        folder,
        resolve_labels(labels) or labels,
        target,
        data,
        allow_missing=allow_missing,
        warn=warn,
    )
    print_summary(results, target / "report.html")


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[str | None, typer.Option(help="Current data folder, if it has moved.")] = None,
) -> None:
    """Write results and reports of a run again from its stored answers, without a server."""
    from eval.workflows.reporting import rebuild_reports

    print_summary(rebuild_reports(folder, data, warn=warn), folder / "report.html")


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of a finished run, which is subtracted.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of another finished run of the same task.")],
    strategy_a: Annotated[
        str | None, typer.Option(help="Strategy of A. Default: all strategies that both runs have.")
    ] = None,
    strategy_b: Annotated[str | None, typer.Option(help="Strategy of B. Default: that of A.")] = None,
    data: Annotated[str | None, typer.Option(help="Current data folder of both, if it has moved.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and compare.md.")] = None,
) -> None:
    """Compare two finished runs, paired where their questions agree, without a server."""
    from eval.report.run_pairs import print_comparison, render_comparison
    from eval.workflows.run_comparison import compare_runs
    from eval.workflows.run_directory import RunDirectory

    comparison = compare_runs(first, second, (strategy_a, strategy_b), data)
    print_comparison(comparison, Console())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        RunDirectory(out).write_file("compare.json", comparison.model_dump_json(indent=2))
        RunDirectory(out).write_file("compare.md", render_comparison(comparison))


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, of any tasks and models.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("leaderboard.html"),
) -> None:
    """Write one page with the strategies of several runs and models, without a server."""
    from eval.workflows.leaderboard import write_leaderboard

    write_leaderboard(runs, out)
    typer.echo(out)


def track(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    to: Annotated[Literal["wandb", "mlflow"], typer.Option(help="The tracker. Its package is an extra.")],
    project: Annotated[str, typer.Option(help="Project of wandb, experiment of mlflow.")] = "onlyseen",
    location: Annotated[
        str | None, typer.Option(help="wandb: folder of an offline run. mlflow: tracking URI. Default: its settings.")
    ] = None,
) -> None:
    """Send settings, numbers and reports of a finished run to wandb or mlflow."""
    from eval.workflows.tracking import track_run

    typer.echo(track_run(folder, to, project, location))


def merge(
    shards: Annotated[list[Path], typer.Argument(help="Folders of the runs with --shard 1/n to n/n.")],
    out: Annotated[Path, typer.Option(help="Folder of the merged run.")],
    data: Annotated[str | None, typer.Option(help="Data folder on this machine.")] = None,
) -> None:
    """Merge the shards of a run."""
    from eval.workflows.merger import merge_shards

    results = merge_shards(shards, out, data, warn=warn)
    print_summary(results, out / "report.html")


def export(
    folder: Annotated[str, typer.Argument(help="Folder of a run. With --task: `embedded` or data, as in run --data.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    strategy: Annotated[str | None, typer.Option(help="Label of the strategy whose answers are written.")] = None,
    style: Annotated[Literal["official", "llava"], typer.Option(help="Format of the answers.")] = "official",
    to: Annotated[
        Literal["lmms-eval", "vlmevalkit", "inspect"] | None,
        typer.Option(help="Write the questions for this toolkit, instead of answers."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="With --to: a task, whose questions need no run.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --task: questions of every scope.")] = None,
    data: Annotated[str | None, typer.Option(help="Current data folder, if it has moved.")] = None,
) -> None:
    """Write the answers of a run for the authors' scripts, or its yes/no questions for another toolkit."""
    from eval.errors import EvaluationError
    from eval.workflows.exporter import export_run
    from eval.workflows.toolkit_export import read_run_questions, read_task_questions, write_questions

    if (strategy is None) == (to is None):
        raise EvaluationError("--strategy, --to: give one of them. Answers need a strategy, and questions a toolkit.")
    if (task or limit) and to is None:
        raise EvaluationError("--task, --limit: use them with --to.")
    if limit and task is None:
        raise EvaluationError("--limit: use it with --task. The questions of a run have its own limit.")
    if strategy is not None:
        for file in export_run(Path(folder), strategy, out, style, data):
            typer.echo(file)
        return
    assert to is not None
    questions = read_task_questions(task, folder, limit) if task else read_run_questions(Path(folder), data)
    for file in write_questions(questions, to, out):
        typer.echo(file)
    if questions.left_out:
        warn(f"{questions.left_out} questions have no image and are left out.")
