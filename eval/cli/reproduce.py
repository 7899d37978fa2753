"""The command `reproduce`.

It imports its modules when it is called, so that `--help` does not load statistics and plots.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eval.cli.run import run_to_end
from eval.cli.summary import print_summary


def reproduce(
    table: Annotated[
        str, typer.Argument(help="Name of a table, or a .toml file with its settings. `list` lists them.")
    ],
    tables: Annotated[
        Path | None, typer.Option(help="YAML file with published numbers, which are shown beside those of the run.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="Address of an OpenAI-compatible server, with or without /v1.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the only model that the server lists.")] = None,
    data: Annotated[str, typer.Option(help="`embedded`, or the data folder of the task.")] = "embedded",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of questions of every scope. Default: that of the table.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    controls: Annotated[bool, typer.Option(help="Add matched controls of strategies with branches.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. An existing run is continued.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one response.")] = 300.0,
    retries: Annotated[int, typer.Option(min=0, help="Retries of a failed request, with growing pauses.")] = 5,
) -> None:
    """Run the setting of a published table, and show its numbers beside ours."""
    from eval.hub.data_folder import normalize_data
    from eval.published.records import read_records
    from eval.published.reproduction import (
        HEADERS,
        build_reproduction,
        describe_deviations,
        list_rows,
        list_sources,
        render_reproduction,
    )
    from eval.published.settings import list_tables, load_settings
    from eval.report.terminal import print_plain_table
    from eval.runs.client import EvalClient
    from eval.workflows.reproduction import build_run_options

    if table == "list":
        for name, title in list_tables().items():
            typer.echo(f"{name}: {title}")
        return
    settings = load_settings(table)
    records = read_records(tables) if tables else []
    folder = normalize_data(data)
    options, labels = build_run_options(settings, folder, model, limit, controls=controls)
    client = EvalClient(base_url, api_key, timeout, attempts=retries + 1, connections=concurrency)
    outcome = run_to_end(options, client, out, concurrency)
    assert outcome.results is not None  # no table needs a judge
    reproduction = build_reproduction(settings, outcome.results, records, labels)
    outcome.directory.write_file("reproduction.json", reproduction.model_dump_json(indent=2))
    outcome.directory.write_file("reproduction.md", render_reproduction(reproduction))
    console = Console()
    print_plain_table(reproduction.title, HEADERS, list_rows(reproduction), console)
    for line in [*describe_deviations(reproduction), *list_sources(reproduction)]:
        typer.echo(line)
    typer.echo(f"Table: {outcome.directory.path / 'reproduction.md'}")
    print_summary(outcome.results, outcome.directory.report_file)
