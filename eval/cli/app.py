"""The command tree of `onlyseen-eval`."""

from __future__ import annotations

import typer

from eval.cli.data import build_pope, fetch_chair
from eval.cli.finished_runs import compare, export, judge, leaderboard, merge, report, rescore, track, verify
from eval.cli.reproduce import reproduce
from eval.cli.run import run
from eval.cli.score import (
    score_amber,
    score_chair,
    score_hallusionbench,
    score_mme,
    score_mmhal,
    score_pope,
    score_vallu,
)

app = typer.Typer(
    help="Evaluates decoding strategies against any OpenAI-compatible server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
score_group = typer.Typer(help="Score official answer files.", no_args_is_help=True)
build_group = typer.Typer(help="Build question files.", no_args_is_help=True)
fetch_group = typer.Typer(help="Download files that this project may not ship.", no_args_is_help=True)
app.add_typer(score_group, name="score")
app.add_typer(build_group, name="build")
app.add_typer(fetch_group, name="fetch")

score_group.command("pope")(score_pope)
score_group.command("chair")(score_chair)
score_group.command("mme")(score_mme)
score_group.command("amber")(score_amber)
score_group.command("hallusionbench")(score_hallusionbench)
score_group.command("mmhal")(score_mmhal)
score_group.command("vallu")(score_vallu)
build_group.command("pope")(build_pope)
fetch_group.command("chair")(fetch_chair)

app.command("run")(run)
app.command("reproduce")(reproduce)
app.command("verify")(verify)
app.command("judge")(judge)
app.command("rescore")(rescore)
app.command("report")(report)
app.command("compare")(compare)
app.command("leaderboard")(leaderboard)
app.command("track")(track)
app.command("merge")(merge)
app.command("export")(export)
