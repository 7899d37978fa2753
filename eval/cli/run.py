"""The command `run`.

It imports its modules when it is called, so that `--help` does not load statistics and plots.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from eval.benchmarks.registry import TASK_NAMES
from eval.cli.summary import INCOMPLETE, build_judge_settings, print_summary, resolve_labels
from eval.runs.stack_spec import parse_specs

if TYPE_CHECKING:
    from eval.benchmarks.llm_judge import Judge
    from eval.runs.client import EvalClient
    from eval.runs.preparation import RunOptions
    from eval.workflows.run_workflow import RunOutcome


def run(
    benchmark: Annotated[str, typer.Argument(metavar="TASK", help=f"One of {', '.join(TASK_NAMES)}.")],
    base_url: Annotated[
        str, typer.Option(help="Address of an OpenAI-compatible server, with or without /v1.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the only model that the server lists.")] = None,
    strategies: Annotated[str, typer.Option(help="plain,vcd,agla:alpha=1.0,agla+vhr:vhr.alpha=2")] = "plain",
    data: Annotated[
        str, typer.Option(help="`embedded`, a folder of official files, parquet files, or hf:NAME of a dataset.")
    ] = "embedded",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of questions of every scope, spread over images.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    seeds: Annotated[str, typer.Option(help="Seeds of sampled decoding: 0,1,2")] = "0",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Top-p of sampled decoding.")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of one answer. Default: that of the task.")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Text after yes/no questions. '' for none.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt of captions.")] = None,
    parser: Annotated[str, typer.Option(help="Parser of yes and no, as in `score pope`.")] = "official",
    labels: Annotated[
        str | None,
        typer.Option(help="pope: file or folder with other labels, or `repope` for RePOPE's files in the data folder."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --labels: accept labels of questions that are not asked.")
    ] = False,
    variant: Annotated[str, typer.Option(help="Variant of CHAIR, as in `score chair`.")] = "original",
    synonyms: Annotated[Path | None, typer.Option(help="Table of synonyms. Default: our own.")] = None,
    similarity: Annotated[
        bool, typer.Option(help="amber-generative: treat similar words as equal, which needs spaCy's en_core_web_lg.")
    ] = True,
    judge_url: Annotated[
        str | None, typer.Option(help="mmhal: address of the judge, with /v1. Without it, `judge` rates the answers.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="mmhal: model name of the judge.")] = None,
    judge_api_key: Annotated[
        str | None, typer.Option(envvar="JUDGE_API_KEY", help="API key of the judge.", show_default=False)
    ] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="File with another prompt of the judge. {names} are fields of a row.")
    ] = None,
    controls: Annotated[bool, typer.Option(help="Add matched controls of strategies with branches.")] = True,
    strategy_via: Annotated[
        Literal["body", "suffix"], typer.Option(help="Name the strategy in the body or in the model suffix.")
    ] = "body",
    check: Annotated[
        bool, typer.Option("--check", help="chair: measure how well the check of claims detects hallucinations.")
    ] = False,
    logprobs: Annotated[
        bool, typer.Option(help="yes/no questions: get log-probabilities from plain, for the control of yes bias.")
    ] = True,
    shard: Annotated[str, typer.Option(help="k/n: share k of n of the images. `merge` merges them.")] = "1/1",
    out: Annotated[Path | None, typer.Option(help="Folder of the run. An existing run is continued.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one response.")] = 300.0,
    retries: Annotated[int, typer.Option(min=0, help="Retries of a failed request, with growing pauses.")] = 5,
) -> None:
    """Compare strategies on the same questions, images and seeds."""
    from eval.benchmarks.llm_judge import Judge
    from eval.benchmarks.registry import load_task
    from eval.core.task import TaskOptions
    from eval.errors import EvaluationError
    from eval.hub.data_folder import normalize_data, open_data_folder
    from eval.runs.client import EvalClient
    from eval.runs.plan import Shard
    from eval.runs.preparation import RunOptions
    from eval.runs.request import SamplingSettings
    from eval.workflows.run_workflow import parse_seeds

    if check and benchmark != "chair":
        raise EvaluationError(f"--check: {benchmark} has no labels for claims. Use it with chair.")
    if labels is not None and benchmark != "pope":
        raise EvaluationError(f"--labels: {benchmark} has no other labels. Use it with pope.")
    if (judge_url is None) != (judge_model is None):
        raise EvaluationError("--judge-url and --judge-model: give both, or none of them.")
    judge = Judge(judge_url, judge_model, judge_api_key) if judge_url and judge_model else None
    if benchmark != "mmhal" and (judge or judge_prompt):
        raise EvaluationError(f"--judge-url, --judge-prompt: {benchmark} has no judge. Use them with mmhal.")
    task_options = TaskOptions(
        suffix=suffix,
        prompt=prompt,
        parser=parser,
        variant=variant,
        synonyms=synonyms,
        labels=resolve_labels(labels),
        allow_missing=allow_missing,
        similarity=similarity,
        judge=build_judge_settings(judge, judge_prompt),
    )
    task = load_task(benchmark, open_data_folder(data, benchmark), task_options)
    options = RunOptions(
        task=benchmark,
        data=normalize_data(data),
        model=model,
        specs=parse_specs(strategies),
        controls=controls,
        strategy_via=strategy_via,
        sampling=SamplingSettings(temperature=temperature, top_p=top_p, max_tokens=max_tokens or task.max_tokens),
        seeds=parse_seeds(seeds),
        limit=limit,
        shard=Shard.parse(shard),
        options=task_options,
        check=check,
        yes_scores=logprobs and task.is_yes_no,
    )
    client = EvalClient(base_url, api_key, timeout, attempts=retries + 1, connections=concurrency)
    outcome = run_to_end(options, client, out, concurrency, judge)
    if outcome.results is None:
        folder = outcome.directory.path
        typer.echo(f"The answers are stored. Next: onlyseen-eval judge {folder} --judge-url URL --judge-model NAME")
        raise typer.Exit(INCOMPLETE if outcome.failures else 0)
    print_summary(outcome.results, outcome.directory.report_file)


def run_to_end(
    options: RunOptions, client: EvalClient, out: Path | None, concurrency: int, judge: Judge | None = None
) -> RunOutcome:
    """Execute a run. If it is interrupted, the process ends with the status of an interrupt.

    Args:
        options: The options of the run.
        client: A client that is not open yet.
        out: Folder of the run.
        concurrency: Number of requests in flight.
        judge: The judge that the options name.

    Returns:
        The outcome.

    Raises:
        Exit: The run is interrupted.
    """
    from eval.workflows.run_workflow import run_evaluation

    console = Console(stderr=True)
    try:
        return asyncio.run(run_evaluation(options, client, out, concurrency, console, judge))
    except KeyboardInterrupt:
        console.print("Stopped. Stored answers are not lost. The same command continues.")
        raise typer.Exit(130) from None
