"""`score pope` and `build pope`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from eval.errors import InputError
from eval.pope.builder import SPLITS, TEMPLATE, Builder, Wording, scenes
from eval.pope.files import answered
from eval.pope.parsers import PARSERS
from eval.pope.score import disagreement, score
from eval.table import printed

SHOWN = 5  # doubts, before they are only counted

ParserName = Literal["official", "opera", "vcd", "lmms-eval", "vlmevalkit"]


def score_pope(
    questions: Annotated[Path, typer.Option(help="Question file, official format.")],
    answers: Annotated[Path, typer.Option(help="Answer file: `answer`, `text`, `caption` or `response` a line.")],
    parser: Annotated[ParserName, typer.Option(help="Whose way of reading yes and no.")] = "official",
    compare: Annotated[bool, typer.Option("--compare", help="All parsers, and how often they disagree.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Accuracy, precision, recall, F1 and yes ratio of answers to POPE's questions."""
    chosen = list(PARSERS.values()) if compare else [PARSERS[parser]]
    pairs = answered(questions, answers, chosen)
    for doubt in pairs.doubts[:SHOWN]:
        typer.echo(f"warning: {doubt}", err=True)
    if len(pairs.doubts) > SHOWN:
        typer.echo(f"warning: and {len(pairs.doubts) - SHOWN} more", err=True)
    scores = {each.name: score(pairs.labels, pairs.answers, each) for each in chosen}
    if not compare:
        result = scores[parser].as_json()
        typer.echo(json.dumps(result) if as_json else printed({parser: result}))
        return
    differing = disagreement(pairs.labels, pairs.answers)
    if as_json:
        everything = {name: each.as_json() for name, each in scores.items()}
        typer.echo(json.dumps({"parsers": everything, "disagreement": differing, "n": len(pairs.labels)}))
    else:
        typer.echo(printed({name: each.as_json() for name, each in scores.items()}))
        typer.echo(f"The parsers disagree on {differing:.1%} of the answers.")


def build_pope(
    objects: Annotated[Path, typer.Option(help='`{"image": ..., "objects": [...]}` lines; their order matters.')],
    out: Annotated[Path, typer.Option(help="Folder for random.jsonl, popular.jsonl and adversarial.jsonl.")],
    per_image: Annotated[int, typer.Option(min=1, help="Objects asked for in an image, and as many absent.")] = 3,
    seed: Annotated[int, typer.Option(help="For the random split, the fallbacks and --images.")] = 0,
    images: Annotated[int | None, typer.Option(min=1, help="Draw so many images; without it, all in order.")] = None,
    template: Annotated[str, typer.Option(help="`{}` is replaced by the object.")] = TEMPLATE,
    official_article: Annotated[
        bool, typer.Option("--official-article", help="Repeat the official slip: an apple in the imange.")
    ] = False,
) -> None:
    """Writes the three splits of questions by the official rules."""
    if "{}" not in template:
        raise typer.BadParameter("must hold {}", param_hint="--template")
    try:
        builder = Builder(scenes(objects), per_image, seed, images)
        built = {split: list(builder.questions(split, Wording(template, official_article))) for split in SPLITS}
    except ValueError as error:
        raise InputError(str(error), objects, field="objects") from error
    out.mkdir(parents=True, exist_ok=True)
    for split, questions in built.items():
        (out / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions), encoding="utf-8")
    typer.echo(f"{sum(map(len, built.values()))} questions in {out}", err=True)
