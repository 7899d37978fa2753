"""The usage of an answer."""

from __future__ import annotations

import pytest

from decoding.hf_engine.engine import HFEngine
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest
from tests.decoding.hf_engine.harness import exact_length, make_prompt, run_strategies

N = 9
DESCRIPTION = 12  # tokens, as `harness.build_stack` limits it; the tiny model never ends one by itself
PASSES = {
    "plain": N,
    "sharpen": N,
    "vcd": 2 * N,
    "agla": 2 * N,
    "agla+vcd": 3 * N,
    "vhr": N + 1,
    "agla+vhr": 2 * N + 1,
    "pai": 2 * N,
    "paint": N + 1,
    "ritual": 2 * N,
    "nolan": 2 * N,
    "sira": 2 * N,
    "damro": 2 * N,
    "hgai": N,
    "vaf": N,
    "iat": N,
    "adaiat": N,
    "spin": N,
    "vista": N + 2,
    "rudder": N,
    "sid": 2 * N,
    "avisc": 2 * N,
    "dola": N,
    "deco": N,
    "pai+vhr": 2 * N + 2,
    "dola+vhr": N + 2,
    "describe": N + DESCRIPTION,
    "vdgd": N + DESCRIPTION,
    "vdgd+vcd": 2 * (N + DESCRIPTION),
    "vdgd+vhr": N + DESCRIPTION + 2,
}


@pytest.mark.parametrize("names", PASSES)
async def test_forward_passes_count_all_rows(names: str, engine: HFEngine) -> None:
    answer, prior_usage = await run_strategies(engine, names, make_prompt(), exact_length(N))
    usage = answer.finish.usage
    assert usage.forward_passes + prior_usage.forward_passes == PASSES[names]
    assert (usage.steps, usage.completion_tokens) == (N, N)


@pytest.mark.parametrize("names", ["plain", "truncate", "sharpen"])
async def test_changed_steps_is_zero_for_neutral_strategies(names: str, engine: HFEngine) -> None:
    answer, _ = await run_strategies(engine, names, make_prompt(), exact_length(N))
    assert answer.finish.usage.changed_steps == 0


@pytest.mark.parametrize("names", ["vhr", "agla+vhr", "pai"])
async def test_changed_steps_is_none_for_strategies_inside_the_model(names: str, engine: HFEngine) -> None:
    answer, _ = await run_strategies(engine, names, make_prompt(), exact_length(N))
    assert answer.finish.usage.changed_steps is None


async def test_shared_prefill_counts_for_each_row(engine: HFEngine) -> None:
    prompt = make_prompt()
    answer = await collect_answer(
        engine.generate(GenerateRequest(prompt, exact_length(N), branches={"same/again": prompt}))
    )
    assert answer.finish.usage.forward_passes == 2 * N


async def test_every_phase_has_a_duration(engine: HFEngine) -> None:
    answer, _ = await run_strategies(engine, "vcd", make_prompt(), exact_length(N))
    assert set(answer.finish.usage.seconds) == {"queue", "prefill", "decode"}
    assert all(0 < seconds < 10 for seconds in answer.finish.usage.seconds.values())


async def test_prompt_tokens_are_those_of_the_main_prompt(engine: HFEngine) -> None:
    prompt = make_prompt()
    answer, _ = await run_strategies(engine, "vcd", prompt, exact_length(1))
    assert answer.finish.usage.prompt_tokens == len(engine.model.encoder.encode(prompt))


async def test_every_counter_has_a_help_text(engine: HFEngine) -> None:
    assert engine.counter_help.keys() == (await engine.get_counters()).keys()
