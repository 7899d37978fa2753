"""The pictures that strategies made for their branches, as a client can show them."""

from __future__ import annotations

import base64
import io

from PIL import Image

from decoding.ask import Ask
from decoding.prompt import Picture

LONGEST_SIDE = 512  # pixels; a larger picture is made smaller


def views(ask: Ask) -> dict[str, list[str]]:
    """Branch -> its pictures as data URLs, in their order, for branches with other pictures than the main prompt.

    Noise has no view: the engine adds it, to pixels that it has already normalised. Slow: call it in a thread.
    """
    own = set(ask.prompt.pictures)
    edited = {name: [each for each in prompt.pictures if each.noise is None] for name, prompt in ask.branches.items()}
    return {name: [view(each) for each in seen] for name, seen in edited.items() if not own.issuperset(seen)}


def view(picture: Picture) -> str:
    small = picture.image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.NEAREST)  # others would blur a mask's edge
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
