"""Requests for a server under test: images of many sizes and formats, and strategies of all kinds."""

from __future__ import annotations

import base64
import io
import random
from functools import cache
from typing import Any

from PIL import Image

from bench.harness.models import EMBEDDED

STRATEGIES = ("plain", "vcd", "agla", "vhr", "vdgd", "agla+vhr")
SIZES = (112, 336, 768, 1280)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SCENES = sorted((EMBEDDED / "scenes" / "images").glob("*.png"))
TEXTS = ("Please describe this image in detail.", "Is there a dog in the image?")


@cache
def build_image_url(scene: int, size: int, format: str) -> str:
    """Return a scene as a data URL, resized to a square."""
    buffer = io.BytesIO()
    Image.open(SCENES[scene % len(SCENES)]).convert("RGB").resize((size, size)).save(buffer, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def build_request(image: str, text: str = TEXTS[0], **fields: Any) -> dict[str, Any]:
    """Build a chat request with one image."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    base = {"model": "onlyseen-tiny", "temperature": 0, "max_tokens": 24}
    return base | {"messages": [{"role": "user", "content": parts}]} | fields


def build_random_request(rng: random.Random) -> dict[str, Any]:
    """Build a chat request with random image, text, strategy and sampling parameters."""
    image = build_image_url(rng.randrange(64), rng.choice(SIZES), rng.choice(FORMATS))
    return build_request(
        image,
        rng.choice(TEXTS),
        model=f"onlyseen-tiny:{rng.choice(STRATEGIES)}",
        max_tokens=rng.choice((1, 8, 24, 64)),
        temperature=rng.choice((0, 1)),
        n=rng.choice((1, 1, 1, 2)),
    )
