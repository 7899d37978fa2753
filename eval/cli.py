"""onlyseen-eval: every sub-command is a function of its own file, hung into the tree here."""

from __future__ import annotations

import typer

from eval.chair.command import score_chair
from eval.fetch import fetch_chair
from eval.pope.command import build_pope, score_pope
from eval.run_command import export_run, merge_runs, run_task, verify_run
from eval.score_commands import score_amber, score_hallusionbench, score_mme, score_mmhal, score_vallu

app = typer.Typer(
    help="Measures what a decoding strategy does, against any OpenAI-compatible server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
score = typer.Typer(help="Score official answer files.", no_args_is_help=True)
build = typer.Typer(help="Build question files.", no_args_is_help=True)
fetch = typer.Typer(help="Download what may not be shipped.", no_args_is_help=True)
app.add_typer(score, name="score")
app.add_typer(build, name="build")
app.add_typer(fetch, name="fetch")

score.command("pope")(score_pope)
score.command("chair")(score_chair)
score.command("mme")(score_mme)
score.command("amber")(score_amber)
score.command("hallusionbench")(score_hallusionbench)
score.command("mmhal")(score_mmhal)
score.command("vallu")(score_vallu)
build.command("pope")(build_pope)
fetch.command("chair")(fetch_chair)

app.command("run")(run_task)
app.command("verify")(verify_run)
app.command("merge")(merge_runs)
app.command("export")(export_run)
