"""Branches take the main row's token with every way of sampling, and seeded answers are reproducible."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from decoding.requests import SamplingParams
from tests.decoding.hf_engine.harness import run_strategies
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

TOKENS = 24
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-p": {"temperature": 1.0, "top_p": 0.9},
    "top-k and min-p": {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "greedy with a penalty": {"repetition_penalty": 1.5},
    "seeded": {"temperature": 1.0, "seed": 7},
    "seeded with a penalty": {"temperature": 1.0, "seed": 7, "repetition_penalty": 1.3},
    "no end before the 20th": {"temperature": 1.0, "min_tokens": 20},
}
PROMPTS = load_prompts(4)


@pytest.mark.parametrize("way", SAMPLING)
async def test_branches_have_the_tokens_of_their_main_row(
    way: str, tight_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gangs: list[list[Any]] = []
    submit = tight_engine.client.submit

    async def submit_watched(requests: Any) -> Any:
        collectors = await submit(requests)
        gangs.append(
            [
                (request.request_id.endswith("-main"), collector)
                for request, collector in zip(requests, collectors, strict=True)
            ]
        )
        return collectors

    monkeypatch.setattr(tight_engine.client, "submit", submit_watched)
    sampling = SamplingParams(max_tokens=TOKENS, **SAMPLING[way])
    requests = [(names, prompt) for names in ("vcd", "agla+vcd", "icd") for prompt in PROMPTS]
    actual = await asyncio.gather(
        *(run_strategies(tight_engine, STACKS[names], prompt, sampling) for names, prompt in requests)
    )
    texts = {tuple(get_token_ids(each)) for each, _ in actual}
    assert len(texts) > len(PROMPTS) // 2, "the answers must differ"
    assert len(gangs) == len(requests)
    branch_tokens = []
    for gang in gangs:
        for is_main, collector in gang:
            if not is_main:
                output = await asyncio.wait_for(collector.get(), 5)
                branch_tokens.append(tuple(output.outputs[0].token_ids))
    assert len(branch_tokens) == 4 + 4 * 2 + 4
    assert set(branch_tokens) == texts


@pytest.mark.parametrize("names", ["plain", "vcd", "agla+vcd"])
async def test_seeded_answer_does_not_depend_on_other_requests(names: str, tight_engine: Any) -> None:
    seeded = SamplingParams(max_tokens=TOKENS, temperature=1.0, top_p=0.95, seed=11)
    alone, _ = await run_strategies(tight_engine, STACKS[names], PROMPTS[0], seeded)
    others = [(STACKS[other], prompt) for other in ("plain", "icd", "agla", "vdgd") for prompt in PROMPTS]
    running = asyncio.create_task(generate_all(tight_engine, others, TOKENS))
    again = await asyncio.gather(*(run_strategies(tight_engine, STACKS[names], PROMPTS[0], seeded) for _ in range(3)))
    await running
    assert [get_token_ids(each) for each, _ in again] == [get_token_ids(alone)] * 3
    different, _ = await run_strategies(
        tight_engine, STACKS[names], PROMPTS[0], SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=12)
    )
    assert get_token_ids(different) != get_token_ids(alone)
