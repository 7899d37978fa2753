"""Commands that create data files: `build pope` and `fetch chair`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated

import httpx
import typer

from eval.benchmarks.pope.builder import SPLITS, TEMPLATE, PopeBuilder, QuestionTemplate, read_image_objects
from eval.errors import EvaluationError, InputError

SYNONYMS_URL = "https://raw.githubusercontent.com/LisaAnne/Hallucination/6e4d33c4bedf6dfcd24c61bf527f40714717be47/data/synonyms.txt"
SYNONYMS_SHA256 = "b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2"


def build_pope(
    objects: Annotated[
        Path, typer.Option(help='Lines of `{"image": ..., "objects": [...]}`. The order of the objects matters.')
    ],
    out: Annotated[Path, typer.Option(help="Folder for random.jsonl, popular.jsonl and adversarial.jsonl.")],
    per_image: Annotated[int, typer.Option(min=1, help="Present objects per image, and as many absent ones.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the random split, of fallbacks and of --images.")] = 0,
    images: Annotated[int | None, typer.Option(min=1, help="Number of images to draw. Default: all in order.")] = None,
    template: Annotated[str, typer.Option(help="Question text. `{}` is replaced by the object.")] = TEMPLATE,
    official_article: Annotated[
        bool, typer.Option("--official-article", help="Reproduce the official error: an apple in the imange.")
    ] = False,
) -> None:
    """Build the three splits of questions by the official rules."""
    if "{}" not in template:
        raise typer.BadParameter("must contain {}", param_hint="--template")
    try:
        builder = PopeBuilder(read_image_objects(objects), per_image, seed, images)
        question_template = QuestionTemplate(template, official_article)
        splits = {split: list(builder.build_questions(split, question_template)) for split in SPLITS}
    except ValueError as error:
        raise InputError(str(error), objects, field="objects") from error
    out.mkdir(parents=True, exist_ok=True)
    for split, questions in splits.items():
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        (out / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    typer.echo(f"{sum(map(len, splits.values()))} questions in {out}", err=True)


def fetch_chair(
    out: Annotated[Path, typer.Option(help="File for the table, for `score chair --synonyms`.")] = Path(
        "chair/synonyms.txt"
    ),
    url: Annotated[str, typer.Option(help="Address of a mirror. The content must be the same.")] = SYNONYMS_URL,
) -> None:
    """Download the official table of COCO synonyms from its authors' repository, under their terms."""
    download_file(url, SYNONYMS_SHA256, out)
    typer.echo(str(out))


def download_file(url: str, sha256: str, file: Path, timeout: float = 60.0) -> None:
    """Download a file and check its hash. An error leaves an existing file unchanged.

    Args:
        url: The address.
        sha256: Expected SHA-256 of the content.
        file: The file to write.
        timeout: Seconds for the request.

    Raises:
        EvaluationError: The request fails, or the content has another hash.
    """
    try:
        content = httpx.get(url, follow_redirects=True, timeout=timeout).raise_for_status().content
    except httpx.HTTPError as error:
        raise EvaluationError(f"{url} cannot be downloaded: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EvaluationError(f"{url} is not the expected file: its SHA-256 is {found}, not {sha256}")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    os.replace(part, file)
