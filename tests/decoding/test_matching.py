"""Requests that wait for the matcher together are looked at together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from decoding.answer import Heat
from decoding.ask import Picture, Relevance
from decoding.errors import Unsupported
from decoding.matching import MOST_AT_ONCE, Matching

PICTURE = Picture(Image.new("RGB", (4, 4)))


class Slow:
    """Waits at its first pass, and cannot read one of the texts."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.go = threading.Event()

    def heats(self, asked: Sequence[Relevance]) -> list[Heat]:
        self.passes.append([one.text for one in asked])
        self.go.wait(10)
        if any(one.text == "bad" for one in asked):
            raise ValueError("unreadable")
        return [Heat(np.zeros((1, 1), dtype=np.float32), len(one.text), 1) for one in asked]


async def test_who_comes_while_it_is_at_work_is_looked_at_in_one_pass() -> None:
    matching, slow = Matching(), Slow()
    matching.matcher = slow  # type: ignore[assignment]
    first = asyncio.create_task(matching.heat(Relevance(PICTURE, "first")))
    while not slow.passes:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    texts = ["bad", *("a" * n for n in range(1, MOST_AT_ONCE + 3))]
    others = [asyncio.create_task(matching.heat(Relevance(PICTURE, text))) for text in texts]
    await asyncio.sleep(0)
    others.pop(1).cancel()
    await asyncio.sleep(0)
    slow.go.set()
    heats = await asyncio.gather(first, *others, return_exceptions=True)
    await matching.close()
    assert isinstance(heats[1], ValueError)
    assert [heat.similarity for heat in heats if isinstance(heat, Heat)] == [5, *range(2, MOST_AT_ONCE + 3)]
    assert [len(each) for each in slow.passes if len(each) > 1] == [MOST_AT_ONCE - 1, 3]
    assert "a" not in {text for each in slow.passes for text in each}


async def test_without_a_matcher_it_says_how_to_get_one() -> None:
    with pytest.raises(Unsupported, match="--matcher"):
        await Matching().heat(Relevance(PICTURE, "cat"))
