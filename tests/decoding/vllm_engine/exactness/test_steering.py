"""Steered requests on vLLM: preempted, and next to requests that must not read their keys and values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from decoding.multimodal.vector_files import VectorFiles
from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts
from tests.decoding.vllm_engine.test_cache_isolation import watch_requests

TOKENS = 24
STRONG = build_stack("steer", steer={"strength": 1.0})
ANSWER = build_stack("steer", steer={"strength": 1.0, "positions": "answer"})


async def test_steered_answers_equal_the_transformers_engine_under_preemption(
    tight_engine: Any, hf_engine: Any
) -> None:
    """Prompts run in chunks of 32 tokens. After a preemption, vLLM reads an answer as if it belonged to the prompt."""
    names = ("steer", "steer the answer", "vcd", "steer an attention", "deco+steer+pai", "steer the answer")
    requests = [(STACKS[names[number % len(names)]], prompt) for number, prompt in enumerate(load_prompts(18))]
    before = (await tight_engine.report())["counters"]
    expected, actual = (
        await generate_all(hf_engine, requests, 40),
        await generate_all(tight_engine, requests, 40),
    )
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
    after = (await tight_engine.report())["counters"]
    assert after["preemptions"] > before["preemptions"]


async def test_steered_keys_and_values_are_not_shared(roomy_engine: Any, hf_engine: Any) -> None:
    """A prompt that ends with an answer runs after the request of that answer."""
    prompt = load_prompts(30)[-1]
    stacks = [build_stack("plain"), STRONG, ANSWER, build_stack("steer+vhr", steer={"positions": "answer"})]
    requests = [(stack, prompt) for stack in stacks * 2]
    expected = await generate_all(hf_engine, requests, TOKENS)
    longer = [prompt.with_question(f"{prompt.question} {answer.text}") for answer in expected[: len(stacks)]]
    continued = [(stack, each) for stack in stacks for each in longer]
    expected += await generate_all(hf_engine, continued, TOKENS)
    assert len({tuple(get_token_ids(each)) for each in expected[: len(stacks)]}) >= 3
    for _ in range(2):
        actual = [
            *await generate_all(roomy_engine, requests, TOKENS),
            *await generate_all(roomy_engine, continued, TOKENS),
        ]
        assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]


async def test_requests_with_equal_steering_share_the_prefix_cache(roomy_engine: Any) -> None:
    prompt = load_prompts(31)[-1]
    with watch_requests(roomy_engine) as (_, cached):
        for stack in (STRONG, STRONG, STACKS["steer"], STRONG):
            await run_strategies(roomy_engine, stack, prompt, exact_length(2))
    first, again, other, last = cached
    assert first == other == 0
    assert again == last > 0
    workers = (await roomy_engine.report())["workers"]
    assert workers[0]["states"] == 0


async def test_changed_file_is_read_again(roomy_engine: Any, hf_engine: Any, tmp_path: Path) -> None:
    (prompt,) = load_prompts(1)
    files = hf_engine._vector_files
    assert files is not None
    shape = files.shape
    own = VectorFiles(tmp_path, *shape, torch.device("cpu"))
    before, roomy_engine._vector_files = roomy_engine._vector_files, own
    stack = build_stack("steer", steer={"vectors": "other.safetensors"})
    answers = []
    try:
        for number in range(2):
            vectors = torch.randn(shape, generator=torch.Generator().manual_seed(number))
            save_file({"vectors": vectors}, tmp_path / "other.safetensors")
            os.utime(tmp_path / "other.safetensors", (number, number))
            answers.append(await generate_all(roomy_engine, [(stack, prompt)] * 2, TOKENS))
    finally:
        roomy_engine._vector_files = before
    tokens = [[get_token_ids(each) for each in both] for both in answers]
    assert tokens[0][0] == tokens[0][1] != tokens[1][0] == tokens[1][1]
    handles = {state for state in roomy_engine._state_handles.known if state.startswith("vectors-")}
    assert handles == {each.state.handle for each in roomy_engine._vector_states.values()}  # equal files share one
