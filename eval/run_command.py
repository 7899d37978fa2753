"""`run`, `verify`, `merge` and `export`. `--help` loads no statistics: they import when called."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from eval.recipe import recipes
from eval.tasks import NAMES

if TYPE_CHECKING:
    from eval.results import Results

INCOMPLETE = 3  # exit status: some questions have no answer


def run_task(
    benchmark: Annotated[str, typer.Argument(metavar="TASK", help=f"One of {', '.join(NAMES)}.")],
    base_url: Annotated[
        str, typer.Option(help="An OpenAI-compatible server, with or without /v1.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Left out: the only one that the server lists.")] = None,
    strategies: Annotated[str, typer.Option(help="plain,vcd,agla:alpha=1.0,agla+vhr:vhr.alpha=2")] = "plain",
    data: Annotated[str, typer.Option(help="`embedded`, or a folder with pictures and official files.")] = "embedded",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions of every part.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    seeds: Annotated[str, typer.Option(help="Of sampled decoding: 0,1,2")] = "0",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Of sampled decoding.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one answer. Left out: the task's own.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Appended to yes-or-no questions; '' for none.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What asks for a caption.")] = None,
    parser: Annotated[str, typer.Option(help="How yes and no are read, as in `score pope`.")] = "official",
    variant: Annotated[str, typer.Option(help="How objects are read, as in `score chair`.")] = "original",
    synonyms: Annotated[Path | None, typer.Option(help="Of objects, instead of the table that ships.")] = None,
    controls: Annotated[bool, typer.Option(help="Run matched controls beside strategies with branches.")] = True,
    door: Annotated[Literal["body", "suffix"], typer.Option(help="Where a request names its strategy.")] = "body",
    shard: Annotated[str, typer.Option(help="k/n: this machine's share of n. `merge` joins them.")] = "1/1",
    out: Annotated[Path | None, typer.Option(help="Folder of the run, which goes on from what is there.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 300.0,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that fails, with growing pauses.")] = 5,
) -> None:
    """Measure strategies side by side: the same questions, pictures and seeds for each."""
    from eval.client import Client
    from eval.dataset import located
    from eval.plan import Shard
    from eval.preparation import Wishes
    from eval.request import Sampling
    from eval.run import run, whole_numbers
    from eval.tasks import load
    from eval.tasks.options import Options

    options = Options(suffix=suffix, prompt=prompt, parser=parser, variant=variant, synonyms=synonyms)
    most = max_tokens or load(benchmark, located(data), options).max_tokens
    wishes = Wishes(
        task=benchmark,
        data=data if data == "embedded" else str(located(data).resolve()),
        model=model,
        recipes=recipes(strategies),
        controls=controls,
        door=door,
        sampling=Sampling(temperature=temperature, top_p=top_p, max_tokens=most),
        seeds=whole_numbers(seeds),
        limit=limit,
        shard=Shard.parse(shard),
        options=options,
    )
    console = Console(stderr=True)
    client = Client(base_url, api_key, timeout, attempts=retries + 1, connections=concurrency)
    try:
        outcome = asyncio.run(run(wishes, client, out, concurrency, console))
    except KeyboardInterrupt:
        console.print("Stopped. What was answered is kept; the same command goes on from there.")
        raise typer.Exit(130) from None
    conclude(outcome.results, outcome.folder.report)


def verify_run(
    folder: Annotated[Path, typer.Argument(help="Of a run.")],
    data: Annotated[str | None, typer.Option(help="Where its data lie now.")] = None,
) -> None:
    """Score the stored answers again: is every number still the same, to the digit?"""
    from eval.verify import verify

    differences = verify(folder, data)
    for difference in differences:
        typer.echo(difference, err=True)
    if differences:
        raise typer.Exit(1)
    typer.echo(f"{folder}: files, pictures, answers and numbers are as they were.")


def merge_runs(
    shards: Annotated[list[Path], typer.Argument(help="Folders of the runs with --shard 1/n to n/n.")],
    out: Annotated[Path, typer.Option(help="Folder for the whole.")],
    data: Annotated[str | None, typer.Option(help="Where the data lie here.")] = None,
) -> None:
    """Join the shards of a run."""
    from eval.merge import merge

    conclude(merge(shards, out, data), out / "report.html")


def export_run(
    folder: Annotated[Path, typer.Argument(help="Of a run.")],
    strategy: Annotated[str, typer.Option(help="As the table of the run calls it.")],
    out: Annotated[Path, typer.Option(help="Folder for the files, one for each part of the task.")],
    style: Annotated[Literal["official", "llava"], typer.Option(help="Whose script is to read them.")] = "official",
    data: Annotated[str | None, typer.Option(help="Where its data lie now.")] = None,
) -> None:
    """Write the answers of a run in the official formats, for the authors' own scripts."""
    from eval.handout import hand_out

    for file in hand_out(folder, strategy, out, style, data):
        typer.echo(file)


def conclude(results: Results, report: Path) -> None:
    from eval.terminal import show

    show(results, Console())
    typer.echo(f"Report: {report}")
    if not results.complete:
        raise typer.Exit(INCOMPLETE)
