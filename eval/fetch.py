"""Downloads files that others publish, and keeps them only if they are the ones we know."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import httpx
import typer

from eval.errors import EvaluationError

SYNONYMS_URL = "https://raw.githubusercontent.com/LisaAnne/Hallucination/6e4d33c4bedf6dfcd24c61bf527f40714717be47/data/synonyms.txt"
SYNONYMS_SHA256 = "b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2"


def download(url: str, sha256: str, file: Path, timeout: float = 60.0) -> None:
    """
    Raises:
        EvaluationError: no connection, another status than 200, or another content; `file` is untouched then.
    """
    try:
        content = httpx.get(url, follow_redirects=True, timeout=timeout).raise_for_status().content
    except httpx.HTTPError as error:
        raise EvaluationError(f"{url} cannot be fetched: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EvaluationError(f"{url} is not the file we know: its SHA-256 is {found}, not {sha256}")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    os.replace(part, file)


def fetch_chair(
    out: Annotated[Path, typer.Option(help="Where to put the table, for `score chair --synonyms`.")] = Path(
        "chair/synonyms.txt"
    ),
    url: Annotated[str, typer.Option(help="A mirror; the content must be the same.")] = SYNONYMS_URL,
) -> None:
    """The official table of COCO synonyms, from the repository of its authors and under their terms."""
    download(url, SYNONYMS_SHA256, out)
    typer.echo(str(out))
