"""Early exits of requests on vLLM. The tests of parity, pressure, families and compiled models cover them, too."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.errors import BadRequest
from decoding.requests import GenerateRequest
from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.scenes import compute_first_logprobs, generate_all, get_token_ids, load_prompts

TOKENS = 24


async def test_requests_with_different_layers_equal_the_transformers_engine(roomy_engine: Any, hf_engine: Any) -> None:
    """One prompt runs with several layers and with none at the same time. They share the KV cache."""
    stacks = [
        build_stack("plain"),
        *(build_stack("dola", dola={"layers": layers}) for layers in ((0,), (1, 3), (2, 4, 5))),
        build_stack("deco", deco={"first": 0.0, "last": 1.0, "alpha": 2.0}),
        build_stack("vcd"),
        build_stack("vhr"),
    ]
    requests = [(strategies, prompt) for prompt in load_prompts(4) for strategies in stacks]
    expected, actual = (
        await generate_all(hf_engine, requests, TOKENS),
        await generate_all(roomy_engine, requests, TOKENS),
    )
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    assert len({tuple(get_token_ids(each)) for each in actual[: len(stacks)]}) >= len(stacks) - 1


@pytest.mark.parametrize("strategy", ["dola", "deco"])
async def test_first_token_reads_the_last_token_of_the_prompt(strategy: str, roomy_engine: Any, hf_engine: Any) -> None:
    logprobs = await compute_first_logprobs(roomy_engine, strategy, 4)
    assert logprobs == pytest.approx(await compute_first_logprobs(hf_engine, strategy, 4), abs=1e-3)
    assert logprobs != pytest.approx(await compute_first_logprobs(roomy_engine, "plain", 4), abs=1e-2)


async def test_layer_that_does_not_exist_is_refused(roomy_engine: Any) -> None:
    report = (await roomy_engine.report())["workers"][0]
    assert (report["missing"], report["layers"]) == ({}, 6)
    stack = build_stack("dola", dola={"layers": (6,)})
    with pytest.raises(BadRequest, match="'dola' reads layer 6; this model allows at most 5") as failure:
        await roomy_engine.check(GenerateRequest(load_prompts(1)[0], exact_length(1), stack=stack))
    assert failure.value.param == "decoding.dola"
    with pytest.raises(BadRequest, match="reads layer 6"):
        await run_strategies(roomy_engine, stack, load_prompts(1)[0], exact_length(1))
