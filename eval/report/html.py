"""report.html: one self-contained file with tables, plots and a gallery of images and answers."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from eval.analysis.score_table import ScoreTable
from eval.benchmarks.chair.tokenizer import locate_tokens
from eval.core.answer_store import StoredAnswer
from eval.core.results import Results
from eval.core.task import Score
from eval.report import formatting, plots
from eval.report.statements import describe_strategies, explain_metrics, recommend_strategy
from eval.runs.manifest import Manifest

MAX_SIDE = 360  # pixels of a scaled image
MAX_IMAGE_BYTES = 60_000  # larger images are scaled down


def render_html(results: Results, manifest: Manifest, table: ScoreTable) -> str:
    """Render report.html."""
    environment = Environment(
        loader=PackageLoader("eval.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    overall = results.scopes[-1]
    return environment.get_template("report.html.j2").render(
        results=results,
        manifest=manifest,
        scopes=[overall, *results.scopes[:-1]],
        primary_columns=[column for column in results.columns if column.primary],
        gallery=_build_gallery(table),
        fmt=formatting,
        statements=describe_strategies(results),
        recommendation=recommend_strategy(results),
        explanation=explain_metrics(results),
        # matplotlib escapes the labels of these SVG files.
        difference_plot=Markup(plots.plot_differences(overall, results)),
        pareto_plot=Markup(plots.plot_pareto(overall, results)),
        reliability_plot=Markup(plots.plot_reliability(results.detection)),
    )


def _build_gallery(table: ScoreTable) -> dict[str, Any]:
    """Build plain data for the script of the page, which inserts it as text."""
    cards: dict[Path | str, dict[str, Any]] = {}
    rows: dict[tuple[Path | str, str, int | None], dict[str, Any]] = {}
    for index, sample in enumerate(table.samples):
        question = sample.question
        place = question.image or question.cluster
        name = question.image_name if question.image else f"{question.cluster}, no image"
        card = cards.setdefault(place, {"name": name, "image": question.image, "rows": []})
        key = (place, question.prompt, sample.seed)
        if key in rows:
            rows[key]["scopes"].append(question.scope)
            continue
        rows[key] = {
            "question": question.truth.get("question", question.prompt),
            "label": question.truth.get("label"),
            "seed": sample.seed,
            "scopes": [question.scope],
            "answers": [
                _describe_answer(table.answers[label][index], table.scores[label][index]) for label in table.answers
            ],
        }
        card["rows"].append(rows[key])
    for card in cards.values():
        card["image"] = card["image"] and encode_image(card["image"])
    return {"strategies": list(table.answers), "cards": list(cards.values())}


def _describe_answer(answer: StoredAnswer, score: Score) -> dict[str, Any]:
    if "tokens" not in score.detail:
        return {"right": bool(score.detail.get("right")), "pieces": [[answer.text, ""]], "missed": []}
    mentions: Any = score.detail["mentions"]
    return {
        "right": not score.counts["bad"],
        "pieces": split_at_mentions(answer.text, score.detail["tokens"], mentions),
        "missed": score.detail["missed"],
    }


def split_at_mentions(text: str, tokens: Any, mentions: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Split a caption into mentions and the text between them.

    Args:
        text: The caption.
        tokens: Its tokens.
        mentions: First token, last token, node, and whether the node is in the image.

    Returns:
        `[text, ""]` between mentions, `[text, "grounded", node]` or `[text, "hallucinated", node]` for mentions. The
        texts together are the caption.
    """
    spans = locate_tokens(text, tokens)
    pieces: list[list[str]] = []
    end = 0
    for first, last, node, grounded in mentions:
        first_span, last_span = spans[first], spans[last]
        if first_span is None or last_span is None or first_span[0] < end:
            continue
        start, stop = first_span[0], last_span[1]
        pieces += [[text[end:start], ""], [text[start:stop], "grounded" if grounded else "hallucinated", node]]
        end = stop
    return [piece for piece in [*pieces, [text[end:], ""]] if piece[0]]


def encode_image(file: Path) -> str:
    """Encode an image as a data URL. Large images are scaled down; a truncated image is encoded as it is."""
    content, media_type = file.read_bytes(), mimetypes.guess_type(file.name)[0] or "image/png"
    if len(content) > MAX_IMAGE_BYTES:
        with suppress(OSError):
            content, media_type = _scale_down(file), "image/jpeg"
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _scale_down(file: Path) -> bytes:
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
