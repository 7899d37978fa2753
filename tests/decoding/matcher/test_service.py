"""Requests that wait for the matcher share a pass."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from decoding.errors import Unsupported
from decoding.matcher.service import MAX_BATCH_SIZE, MatcherService
from decoding.outputs import RelevanceMap
from decoding.requests import ImageInput, RelevanceRequest

IMAGE = ImageInput(Image.new("RGB", (4, 4)))


class SlowMatcher:
    """Waits in its first pass, and fails on one of the texts."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.go = threading.Event()

    def compute_relevance_maps(self, requests: Sequence[RelevanceRequest]) -> list[RelevanceMap]:
        self.passes.append([one.text for one in requests])
        self.go.wait(10)
        if any(one.text == "bad" for one in requests):
            raise ValueError("unreadable")
        return [RelevanceMap(np.zeros((1, 1), dtype=np.float32), len(one.text), 1) for one in requests]


async def test_requests_during_a_pass_share_the_next_one() -> None:
    service, slow = MatcherService(), SlowMatcher()
    service.matcher = slow  # type: ignore[assignment]
    first = asyncio.create_task(service.compute_relevance_map(RelevanceRequest(IMAGE, "first")))
    while not slow.passes:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    texts = ["bad", *("a" * n for n in range(1, MAX_BATCH_SIZE + 3))]
    others = [asyncio.create_task(service.compute_relevance_map(RelevanceRequest(IMAGE, text))) for text in texts]
    await asyncio.sleep(0)
    others.pop(1).cancel()
    await asyncio.sleep(0)
    slow.go.set()
    maps = await asyncio.gather(first, *others, return_exceptions=True)
    await service.close()
    assert isinstance(maps[1], ValueError)
    assert [one.similarity for one in maps if isinstance(one, RelevanceMap)] == [5, *range(2, MAX_BATCH_SIZE + 3)]
    assert [len(each) for each in slow.passes if len(each) > 1] == [MAX_BATCH_SIZE - 1, 3]
    assert "a" not in {text for each in slow.passes for text in each}


async def test_error_without_a_matcher_names_the_flag() -> None:
    with pytest.raises(Unsupported, match="--matcher"):
        await MatcherService().compute_relevance_map(RelevanceRequest(IMAGE, "cat"))
