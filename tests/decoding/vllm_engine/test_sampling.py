"""Branches take the main row's token, whatever it was drawn by; seeded answers can be had again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from decoding.ask import Sampling
from tests.decoding.hf_engine.asking import answer
from tests.decoding.vllm_engine.scenes import STACKS, answers, ids, prompts

TOKENS = 24
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-p": {"temperature": 1.0, "top_p": 0.9},
    "top-k and min-p": {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "greedy with a penalty": {"repetition_penalty": 1.5},
    "seeded": {"temperature": 1.0, "seed": 7},
    "seeded with a penalty": {"temperature": 1.0, "seed": 7, "repetition_penalty": 1.3},
    "no end before the 20th": {"temperature": 1.0, "min_tokens": 20},
}
ASKED = prompts(4)


@pytest.mark.parametrize("way", WAYS)
async def test_a_branch_never_differs_from_its_main_row(way: str, tight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gangs: list[list[Any]] = []
    submit = tight.line.submit

    async def watched(requests: Any) -> Any:
        boxes = await submit(requests)
        gangs.append([(name.endswith("-main"), box) for (name, *_), box in zip(requests, boxes, strict=True)])
        return boxes

    monkeypatch.setattr(tight.line, "submit", watched)
    sampling = Sampling(max_tokens=TOKENS, **WAYS[way])
    asked = [(names, prompt) for names in ("vcd", "agla+vcd", "icd") for prompt in ASKED]
    said = await asyncio.gather(*(answer(tight, STACKS[names], prompt, sampling) for names, prompt in asked))
    texts = {tuple(ids(one)) for one, _ in said}
    assert len(texts) > len(ASKED) // 2, "they must not agree because all say the same"
    assert len(gangs) == len(asked)
    followed = []
    for gang in gangs:
        for is_main, box in gang:
            if not is_main:
                output = await asyncio.wait_for(box.get(), 5)
                followed.append(tuple(output.outputs[0].token_ids))
    assert len(followed) == 4 + 4 * 2 + 4
    assert set(followed) == texts


@pytest.mark.parametrize("names", ["plain", "vcd", "agla+vcd"])
async def test_a_seeded_answer_is_the_same_whatever_else_runs(names: str, tight: Any) -> None:
    seeded = Sampling(max_tokens=TOKENS, temperature=1.0, top_p=0.95, seed=11)
    alone, _ = await answer(tight, STACKS[names], ASKED[0], seeded)
    others = [(STACKS[other], prompt) for other in ("plain", "icd", "agla", "vdgd") for prompt in ASKED]
    crowd = asyncio.create_task(answers(tight, others, TOKENS))
    again = await asyncio.gather(*(answer(tight, STACKS[names], ASKED[0], seeded) for _ in range(3)))
    await crowd
    assert [ids(one) for one, _ in again] == [ids(alone)] * 3
    different, _ = await answer(tight, STACKS[names], ASKED[0], Sampling(max_tokens=TOKENS, temperature=1.0, seed=12))
    assert ids(different) != ids(alone)
