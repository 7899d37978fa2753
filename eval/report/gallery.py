"""The pictures, with what every strategy said about each of them."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.chair.tokens import spans
from eval.question import Mark
from eval.sheet import Sheet
from eval.store import Answer

SIDE = 360  # pixels; larger pictures are scaled down
HEAVY = 60_000  # bytes


def gallery(sheet: Sheet) -> dict[str, Any]:
    """Plain data for the page's script, which puts it in as text."""
    cards: dict[str, dict[str, Any]] = {}
    rows: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    for at, unit in enumerate(sheet.units):
        question = unit.question
        card = cards.setdefault(question.cluster, {"name": question.cluster, "image": question.image, "rows": []})
        asked = (question.cluster, question.prompt, unit.seed)
        if asked in rows:
            rows[asked]["scopes"].append(question.scope)
            continue
        rows[asked] = {
            "asked": question.truth.get("asked", question.prompt),
            "label": question.truth.get("label"),
            "seed": unit.seed,
            "scopes": [question.scope],
            "answers": [said(sheet.answers[label][at], sheet.marks[label][at]) for label in sheet.answers],
        }
        card["rows"].append(rows[asked])
    for card in cards.values():
        card["image"] = data_url(card["image"])
    return {"strategies": list(sheet.answers), "cards": list(cards.values())}


def said(answer: Answer, mark: Mark) -> dict[str, Any]:
    if "tokens" not in mark.detail:
        return {"right": bool(mark.detail.get("right")), "pieces": [[answer.text, ""]], "missed": []}
    mentions: Any = mark.detail["mentions"]
    return {
        "right": not mark.counts["bad"],
        "pieces": pieces(answer.text, mark.detail["tokens"], mentions),
        "missed": mark.detail["missed"],
    }


def pieces(text: str, tokens: Any, mentions: Sequence[Sequence[Any]]) -> list[list[str]]:
    """The text cut at its mentions: [text, "", node], with `grounded` or `invented` in the middle."""
    places = spans(text, tokens)
    cut: list[list[str]] = []
    end = 0
    for first, last, node, grounded in mentions:
        from_, to = places[first], places[last]
        if from_ is None or to is None or from_[0] < end:
            continue
        begin, stop = from_[0], to[1]
        cut += [[text[end:begin], ""], [text[begin:stop], "grounded" if grounded else "invented", node]]
        end = stop
    return [piece for piece in [*cut, [text[end:], ""]] if piece[0]]


def data_url(file: Path) -> str:
    content, kind = file.read_bytes(), mimetypes.guess_type(file.name)[0] or "image/png"
    if len(content) > HEAVY:
        with suppress(OSError):  # cut off in the middle: the browser shows what there is
            content, kind = scaled(file), "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def scaled(file: Path) -> bytes:
    from PIL import Image

    with Image.open(file) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    small.save(written, format="JPEG", quality=80)
    return written.getvalue()
