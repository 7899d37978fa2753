"""What an answer says it has cost."""

from __future__ import annotations

import pytest

from decoding.ask import Ask
from decoding.hf_engine.engine import HFEngine
from decoding.stack import collect
from tests.decoding.hf_engine.asking import answer, exactly, prompt

N = 9
DESCRIPTION = 12  # tokens, as `asking.stack` limits it; the tiny model never ends one by itself
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
    "sid": 2 * N,
    "avisc": 2 * N,
    "dola": N,
    "deco": N,
    "pai+vhr": 2 * N + 2,
    "dola+vhr": N + 2,
    "vdgd": N + DESCRIPTION,
    "vdgd+vcd": 2 * (N + DESCRIPTION),
    "vdgd+vhr": N + DESCRIPTION + 2,
}


@pytest.mark.parametrize("names", PASSES)
async def test_rows_run_add_up_to_the_forward_passes(names: str, engine: HFEngine) -> None:
    said, spent = await answer(engine, names, prompt(), exactly(N))
    usage = said.end.usage
    assert usage.forward_passes + spent.forward_passes == PASSES[names]
    assert (usage.steps, usage.completion_tokens) == (N, N)


@pytest.mark.parametrize("names", ["plain", "truncate", "sharpen"])
async def test_what_cannot_change_a_greedy_answer_changes_no_step(names: str, engine: HFEngine) -> None:
    said, _ = await answer(engine, names, prompt(), exactly(N))
    assert said.end.usage.changed_steps == 0


@pytest.mark.parametrize("names", ["vhr", "agla+vhr", "pai"])
async def test_how_often_a_strategy_inside_the_model_changed_something_is_unknown(names: str, engine: HFEngine) -> None:
    said, _ = await answer(engine, names, prompt(), exactly(N))
    assert said.end.usage.changed_steps is None


async def test_prompts_that_are_run_once_for_several_rows_count_for_each(engine: HFEngine) -> None:
    asked = prompt()
    said = await collect(engine.generate(Ask(asked, exactly(N), branches={"same/again": asked})))
    assert said.end.usage.forward_passes == 2 * N


async def test_every_phase_took_some_time(engine: HFEngine) -> None:
    said, _ = await answer(engine, "vcd", prompt(), exactly(N))
    assert set(said.end.usage.seconds) == {"queue", "prefill", "decode"}
    assert all(0 < seconds < 10 for seconds in said.end.usage.seconds.values())


async def test_a_prompts_tokens_are_those_of_the_main_branch(engine: HFEngine) -> None:
    asked = prompt()
    said, _ = await answer(engine, "vcd", asked, exactly(1))
    assert said.end.usage.prompt_tokens == len(engine.model.encoder.encode(asked))
