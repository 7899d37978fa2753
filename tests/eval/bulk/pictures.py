"""Inputs of jobs in all formats, and a server with an answer that depends on the picture."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from eval.bulk.inspection import iterate_rows
from eval.bulk.rows import BulkRow
from tests.eval.fake_server import ScriptedReply, image_of, prompt_of

COSTS = {"seconds"}  # fields that depend on the clock


def draw(number: int) -> bytes:
    """Draw a picture that no other number has."""
    output = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 7)).save(output, "PNG")
    return output.getvalue()


def write_pictures(folder: Path, count: int) -> Path:
    """Write a folder of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(draw(number))
    return folder


def write_archive(file: Path, count: int, **record: Any) -> Path:
    """Write a WebDataset archive, with a JSON file beside each picture."""
    with tarfile.open(file, "w") as archive:
        for number in range(count):
            for suffix, content in (("png", draw(number)), ("json", json.dumps({"n": number, **record}).encode())):
                member = tarfile.TarInfo(f"deep/{number:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def answer(request: dict[str, Any]) -> ScriptedReply:
    """Answer with a text that depends on picture, prompt and seed, and with claims. Refuse picture 3."""
    content = base64.b64decode(image_of(request).partition(",")[2])
    if content == draw(3):
        return ScriptedReply("The picture is too small.", status=400)
    digest = hashlib.sha256(content + prompt_of(request).encode() + str(request.get("seed")).encode()).hexdigest()
    placed = {"text": "a cat", "start": 0, "end": 5, "question": "Is there a cat?", "probability": 0.9}
    struck = placed | {"start": None, "end": None, "text": "a dog", "probability": 0.1, "action": "dropped"}
    return ScriptedReply(f"a cat {digest[:12]}", claims=[placed, struck])


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Read all rows of a job without the fields that depend on the clock, by key. A key stands once."""
    rows: list[BulkRow] = sorted(iterate_rows(out), key=lambda row: row.key)
    assert len({row.key for row in rows}) == len(rows)
    return [row.model_dump(exclude=COSTS) for row in rows]
