"""`score chair`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from eval.chair.breakdown import by_category, by_position
from eval.chair.captions import judged_by
from eval.chair.reading import Variant
from eval.chair.score import CaptionScore, score
from eval.table import printed


def score_chair(
    captions: Annotated[Path, typer.Option(help='`{"image_id": ..., "caption": ...}` lines.')],
    annotations: Annotated[Path, typer.Option(help="Folder with instances_*.json and captions_*.json of COCO.")],
    synonyms: Annotated[Path | None, typer.Option(help="The official table; without it, our own.")] = None,
    variant: Annotated[Variant, typer.Option(help="How words are found; results do not compare.")] = "original",
    per_caption: Annotated[Path | None, typer.Option(help="Writes what was found in every caption there.")] = None,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Which objects are invented, and where.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """CHAIR of captions: which objects they mention that are not in the picture."""
    judged = judged_by(captions, annotations, (variant, "fixed"), synonyms)
    scored = judged[variant]
    empty = sum(not each.caption.strip() for each in scored)
    if empty:
        typer.echo(f"warning: {captions}: {empty} captions are empty, and count as captions without a fault", err=True)
    repeated = len(scored) - len({each.image_id for each in scored})
    if repeated:
        typer.echo(f"warning: {captions}: {repeated} captions are of a picture that had one; each counts", err=True)
    if per_caption is not None:
        written = "".join(json.dumps(each.as_json()) + "\n" for each in scored)
        per_caption.write_text(written, encoding="utf-8")
    result = score(scored).as_json()
    fixed = score(judged["fixed"]).as_json()
    if as_json:
        typer.echo(json.dumps({**result, "fixed": fixed, **(_broken_down(scored) if breakdown else {})}))
        return
    typer.echo(printed({variant: result, "fixed": fixed}))
    if breakdown:
        typer.echo(_told(scored))


def _broken_down(scored: Sequence[CaptionScore]) -> dict[str, object]:
    return {
        "by_category": [each.as_json() for each in by_category(scored)],
        "by_position": [each.as_json() for each in by_position(scored)],
    }


def _told(scored: Sequence[CaptionScore]) -> str:
    invented = {each.node: each for each in by_category(scored) if each.hallucinated}
    parts = {f"{part.start:.0%} to {part.end:.0%}": part for part in by_position(scored)}
    width = max(map(len, [*invented, *parts]))
    said = [f"\n{'invented':<{width}}{'mentions':>10}{'invented':>10}  in pictures with"]
    said += [
        f"{node:<{width}}{each.mentions:>10}{each.hallucinated:>10}  {', '.join(name for name, _ in each.company)}"
        for node, each in invented.items()
    ]
    said += [f"\n{'in the text':<{width}}{'mentions':>10}{'invented':>10}"]
    said += [f"{name:<{width}}{part.mentions:>10}{part.hallucinated:>10}" for name, part in parts.items()]
    return "\n".join(said)
