"""The command tree of `onlyseen-batch`.

Commands import their modules when they are called, so that `--help` is quick.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from eval.errors import EvaluationError

app = typer.Typer(
    help="Captions whole data sets: every picture and prompt exactly once, however often the job is killed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Folders of pictures, or .jsonl, .parquet and .tar files."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the job. An existing job is continued.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt of all pictures. Repeat it for several. Default: a column.")
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="Address of a running server. Repeat it for several. Default: http://127.0.0.1:8000."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the only model that the servers list.")] = None,
    strategy: Annotated[str, typer.Option(help="verify, agla:alpha=1.0, agla+vhr:vhr.alpha=2 ...")] = "plain",
    check: Annotated[bool, typer.Option("--check", help="Have the claims of every answer checked.")] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Top-p of sampled decoding.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of one answer.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of sampled decoding. Each item has one derived from it.")] = 0,
    image_column: Annotated[str, typer.Option(help="Column of bytes, paths or data URLs.")] = "image",
    prompt_column: Annotated[str, typer.Option(help="Column of prompts, without --prompt.")] = "prompt",
    id_column: Annotated[str, typer.Option(help="Column of ids. Default id: the place in the input.")] = "id",
    row_format: Annotated[Literal["parquet", "jsonl"], typer.Option("--format", help="Format of the output.")] = (
        "parquet"
    ),
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of an output file.")] = 10_000,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of items. Default: all.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at each server or engine.")] = 16,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="Rows with an error after which the job ends. Default: no bound.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="Failures of an item that are tried again.")] = 5,
    patience: Annotated[float, typer.Option(min=1, help="Seconds without any answer after which the job ends.")] = 600,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one response.")] = 300,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")] = None,
    engines: Annotated[
        int, typer.Option(min=0, help="Engines of the job's own, on Ray, instead of running servers.")
    ] = 0,
    engine_args: Annotated[
        str, typer.Option(help="Settings of each engine, as onlyseen-server has them: '--engine vllm --model M'")
    ] = "",
    cpus_per_engine: Annotated[float, typer.Option(min=0, help="CPUs that Ray reserves for an engine.")] = 1,
    gpus_per_engine: Annotated[float, typer.Option(min=0, help="GPUs that Ray reserves for an engine.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, such as auto. Default: one on this machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Answer prompts about all pictures, and write one row for each."""
    from eval.bulk.inputs import InputOptions
    from eval.bulk.job import JobOptions, run_job
    from eval.runs.request import SamplingSettings
    from eval.runs.stack_spec import parse_spec

    options = JobOptions(
        inputs=[each.resolve() for each in inputs],
        out=out,
        read=InputOptions(tuple(prompt or ()), image_column, prompt_column, id_column),
        model=model,
        spec=parse_spec(strategy),
        sampling=SamplingSettings(temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        seed=seed,
        check=check,
        row_format=row_format,
        part_rows=part_rows,
        limit=limit,
        concurrency=concurrency,
        max_failures=max_failures,
        retries=retries,
        patience=patience,
        timeout=timeout,
        api_key=api_key,
    )
    if engines and base_url:
        raise EvaluationError("--engines and --base-url: choose one of them.")
    if not engines and (engine_args or address):
        raise EvaluationError("--engine-args and --address need --engines.")
    console = Console(stderr=True)
    try:
        if engines:
            from eval.bulk.engines import EngineOptions, run_with_engines

            own = EngineOptions(engines, tuple(shlex.split(engine_args)), cpus_per_engine, gpus_per_engine, address)
            summary = run_with_engines(options, own, console)
        else:
            summary = run_job(options, base_url or ["http://127.0.0.1:8000"], console)
    except KeyboardInterrupt:
        console.print(f"Stopped. Stored rows are not lost. The same command continues: --out {shlex.quote(str(out))}")
        raise typer.Exit(130) from None
    typer.echo(summary.model_dump_json(indent=2) if as_json else summary.describe())


@app.command()
def inspect(
    out: Annotated[Path, typer.Argument(help="Output folder of a job.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 24,
    seed: Annotated[int | None, typer.Option(help="Seed of the choice. Default: other rows each time.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Write a page of random rows, with pictures and coloured claims, and open it in the browser."""
    import webbrowser

    from eval.bulk.inspection import write_page

    page = write_page(out, rows, seed)
    typer.echo(str(page))
    if browser:
        webbrowser.open(page.resolve().as_uri())
