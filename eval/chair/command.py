"""`score chair`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eval.chair.captions import judged
from eval.chair.reading import Variant
from eval.chair.score import score
from eval.table import printed


def score_chair(
    captions: Annotated[Path, typer.Option(help='`{"image_id": ..., "caption": ...}` lines.')],
    annotations: Annotated[Path, typer.Option(help="Folder with instances_*.json and captions_*.json of COCO.")],
    synonyms: Annotated[Path | None, typer.Option(help="The official table; without it, our own.")] = None,
    variant: Annotated[Variant, typer.Option(help="How words are found; results do not compare.")] = "original",
    per_caption: Annotated[Path | None, typer.Option(help="Writes what was found in every caption there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """CHAIR of captions: which objects they mention that are not in the picture."""
    scored = judged(captions, annotations, variant, synonyms)
    empty = sum(not each.caption.strip() for each in scored)
    if empty:
        typer.echo(f"warning: {captions}: {empty} captions are empty, and count as captions without a fault", err=True)
    if per_caption is not None:
        written = "".join(json.dumps(each.as_json()) + "\n" for each in scored)
        per_caption.write_text(written, encoding="utf-8")
    result = score(scored).as_json()
    typer.echo(json.dumps(result) if as_json else printed({variant: result}))
