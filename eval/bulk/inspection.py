"""A page of random rows: pictures, answers with coloured claims, and errors."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from eval.bulk.inputs import SEPARATOR, InputOptions, iterate_file
from eval.bulk.rows import BulkRow, RowClaim, iterate_part
from eval.bulk.store import list_parts, load_job
from eval.errors import InputError

MAX_SIDE = 384  # pixels of a picture on the page
PAGE_NAME = "inspect.html"


@dataclass(frozen=True)
class AnswerSpan:
    """A piece of an answer.

    Attributes:
        text: The text.
        claim: The claim that it is, None for the text between claims.
    """

    text: str
    claim: RowClaim | None = None

    @property
    def hue(self) -> int:
        """The hue of its colour in degrees, from red (improbable) to green (probable)."""
        return round(120 * self.claim.probability) if self.claim else 0


@dataclass(frozen=True)
class InspectedRow:
    """A row as the page shows it.

    Attributes:
        row: The row.
        picture: A data URL, None if the picture is not found.
        spans: The answer in pieces.
        struck: The claims that were struck out.
    """

    row: BulkRow
    picture: str | None
    spans: list[AnswerSpan]
    struck: list[RowClaim]


def write_page(folder: Path, count: int, seed: int | None = None) -> Path:
    """Write a page of random rows.

    Args:
        folder: The output folder of a job.
        count: Number of rows.
        seed: Seed of the choice, None for another one each time.

    Returns:
        The page.
    """
    column = load_job(folder).image_column
    rows, total = sample_rows(folder, count, random.Random(seed))
    shown = [InspectedRow(row, load_picture(row, column), split_answer(row), list_struck(row)) for row in rows]
    environment = Environment(loader=PackageLoader("eval.bulk", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("inspection.html.j2").render(rows=shown, total=total, folder=folder.name)
    file = folder / PAGE_NAME
    file.write_text(page)
    return file


def sample_rows(folder: Path, count: int, generator: random.Random) -> tuple[list[BulkRow], int]:
    """Choose rows at random, with one part in memory at a time.

    Args:
        folder: The output folder of a job.
        count: Number of rows.
        generator: Source of random numbers.

    Returns:
        The rows, in their order, and the number of all rows.

    Raises:
        InputError: There are no rows.
    """
    chosen: list[tuple[int, BulkRow]] = []
    total = 0
    for row in iterate_rows(folder):
        # Reservoir sampling: each row so far is in the sample with the same probability.
        if len(chosen) < count:
            chosen.append((total, row))
        elif (place := generator.randrange(total + 1)) < count:
            chosen[place] = (total, row)
        total += 1
    if not total:
        raise InputError("has no rows yet", folder)
    return [row for _, row in sorted(chosen, key=lambda each: each[0])], total


def iterate_rows(folder: Path) -> Iterator[BulkRow]:
    """Iterate over the rows of all parts."""
    for part in list_parts(folder):
        yield from iterate_part(part)


def split_answer(row: BulkRow) -> list[AnswerSpan]:
    """Split an answer at its claims. A claim that overlaps the one before is left out."""
    text, spans, position = row.answer or "", list[AnswerSpan](), 0
    placed = [claim for claim in row.claims or () if claim.start is not None and claim.end is not None]
    for claim in sorted(placed, key=lambda each: each.start or 0):
        start, end = claim.start or 0, claim.end or 0
        if position <= start < end <= len(text):
            spans += [AnswerSpan(text[position:start]), AnswerSpan(text[start:end], claim)]
            position = end
    return [span for span in [*spans, AnswerSpan(text[position:])] if span.text]


def list_struck(row: BulkRow) -> list[RowClaim]:
    """List the claims that the answer does not have."""
    return [claim for claim in row.claims or () if claim.start is None]


def load_picture(row: BulkRow, column: str) -> str | None:
    """Load the picture of a row from the input, and shrink it.

    Args:
        row: The row.
        column: Column of the picture, if the input has records.

    Returns:
        A data URL, None if the input has no such picture any more.
    """
    content = find_content(row.source, column)
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            shrunk = io.BytesIO()
            image.convert("RGB").save(shrunk, "JPEG", quality=85)
    except Exception:  # Plugins of Pillow raise many types of errors for damaged files.
        return None
    return "data:image/jpeg;base64," + base64.b64encode(shrunk.getvalue()).decode()


def find_content(source: str, column: str) -> bytes | None:
    """Find the bytes of a picture by its place in the input. An archive is read up to the picture."""
    name, separator, _ = source.rpartition(SEPARATOR)
    file = Path(name if separator else source)
    try:
        items = iterate_file(file, str(file), InputOptions(prompts=("",), image_column=column))
        if not separator:
            return next((item.content for item in islice(items, 1)), None)
        return next((item.content for item in items if item.source == source), None)
    except InputError:
        return None
