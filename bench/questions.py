"""Requests to ask a server under test: pictures of many sizes and formats, strategies of every kind."""

from __future__ import annotations

import base64
import io
import random
from functools import cache
from typing import Any

from PIL import Image

from bench.models import EMBEDDED

STRATEGIES = ("plain", "vcd", "agla", "vhr", "vdgd", "agla+vhr")
SIZES = (112, 336, 768, 1280)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SCENES = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))
TEXTS = ("Please describe this image in detail.", "Is there a dog in the image?")


@cache
def url(scene: int, size: int, format: str) -> str:
    buffer = io.BytesIO()
    Image.open(SCENES[scene % len(SCENES)]).convert("RGB").resize((size, size)).save(buffer, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def request(picture: str, text: str = TEXTS[0], **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
    base = {"model": "onlyseen-tiny", "temperature": 0, "max_tokens": 24}
    return base | {"messages": [{"role": "user", "content": parts}]} | fields


def any_request(chance: random.Random) -> dict[str, Any]:
    picture = url(chance.randrange(64), chance.choice(SIZES), chance.choice(FORMATS))
    return request(
        picture,
        chance.choice(TEXTS),
        model=f"onlyseen-tiny:{chance.choice(STRATEGIES)}",
        max_tokens=chance.choice((1, 8, 24, 64)),
        temperature=chance.choice((0, 1)),
        n=chance.choice((1, 1, 1, 2)),
    )
