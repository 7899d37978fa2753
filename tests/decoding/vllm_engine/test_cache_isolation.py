"""Requests with different salts share neither KV blocks nor image features. No request shares edited attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

TOKENS = 24


@contextmanager
def watch_requests(engine: Any) -> Iterator[tuple[list[Any], list[int]]]:
    """Record requests to vLLM.

    Yields:
        The inputs of all members, and the cached prompt tokens of each main row.
    """
    inputs: list[Any] = []
    cached: list[int] = []
    submit = engine.client.submit

    async def submit_watched(requests: Any) -> Any:
        inputs.extend(request.inputs for request in requests)
        collectors = await submit(requests)
        get, first = collectors[-1].get, len(cached)

        async def record_cached_tokens() -> Any:
            output = await get()
            if len(cached) == first:
                cached.append(output.num_cached_tokens)
            return output

        collectors[-1].get = record_cached_tokens
        return collectors

    engine.client.submit = submit_watched
    try:
        yield inputs, cached
    finally:
        del engine.client.submit


@pytest.mark.parametrize("names", ["plain", "vcd", "icd", "agla", "code"])
async def test_another_salt_does_the_work_of_a_cold_request(names: str, roomy_engine: Any) -> None:
    used = 24  # images of the other tests
    prompt = load_prompts(used + len(STACKS))[used + list(STACKS).index(names)]
    runs: dict[str, tuple[list[int], list[int]]] = {}
    hashes: dict[str, set[str]] = {}
    for run in ("one", "one again", "two", "two again"):
        salt = run.split(" ", maxsplit=1)[0]
        with watch_requests(roomy_engine) as (inputs, cached):
            answer, _ = await run_strategies(roomy_engine, STACKS[names], prompt, exact_length(4), cache_salt=salt)
        runs[run] = (get_token_ids(answer), cached)
        hashes.setdefault(salt, set()).update(
            each for member in inputs for items in member.get("mm_hashes", {}).values() for each in items
        )
        assert all(member["cache_salt"] is not None for member in inputs)
    assert runs["two"] == runs["one"]
    assert runs["two again"] == runs["one again"]
    assert runs["one"][0] == runs["one again"][0]
    assert sum(runs["one again"][1]) > sum(runs["one"][1])
    assert hashes["one"]
    assert not hashes["one"] & hashes["two"]


async def test_edited_keys_and_values_are_not_shared(roomy_engine: Any, hf_engine: Any) -> None:
    """A prompt that ends with an answer runs next to the request of that answer, and after it."""
    (prompt,) = load_prompts(1)
    strong = build_stack("pai", pai={"alpha": 4.0, "gamma": 1.0, "first_layer": 0})
    stacks = [build_stack("plain"), strong, build_stack("pai"), build_stack("pai+vhr")]
    requests = [(stack, prompt) for stack in stacks * 2]
    expected = await generate_all(hf_engine, requests, TOKENS)
    longer = prompt.with_question(f"{prompt.question} {expected[1].text}")
    continued = [(stack, longer) for stack in stacks]
    expected += await generate_all(hf_engine, continued, TOKENS)
    assert len({tuple(get_token_ids(each)) for each in expected[: len(stacks)]}) >= 3
    for _ in range(2):
        actual = await generate_all(roomy_engine, requests, TOKENS) + await generate_all(
            roomy_engine, continued, TOKENS
        )
        assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]
