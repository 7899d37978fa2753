"""The option `lazy` of the contrasts: the same output at fewer forward passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.plausible_contrast import PlausibleContrast
from decoding.registry import list_strategies
from decoding.requests import ImageInput, Prompt
from decoding.sampling_params import SamplingParams
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies

LENGTH = 24
BETA = 0.3  # some steps of the test models have one plausible token, and some have more
CONTRASTS = ("agla", "avisc", "damro", "icd", "m3id", "pai", "ritual", "sid", "vcd")
STACKS = (*CONTRASTS, "agla+vcd", "avisc+sid", "m3id+vhr", "pai+vdgd", "vdgd+vcd", "code+icd", "vcd+truncate")
SAMPLINGS = {
    "greedy": exact_length(LENGTH, top_logprobs=5),
    "sampled": exact_length(LENGTH, top_logprobs=5, temperature=1.0, seed=7),
    "penalties": exact_length(LENGTH, top_logprobs=5, temperature=0.8, seed=3, repetition_penalty=1.3),
}
SCENE = sorted((Path(__file__).parents[4] / "embedded" / "scenes" / "images").glob("*.png"))[0]


def build_pair(names: str, lazy: Sequence[str] | None = None) -> tuple[tuple[Strategy, ...], tuple[Strategy, ...]]:
    """Build a stack whose contrasts are all eager, and the same stack with lazy ones (default: all)."""
    contrasts = [name for name in names.split("+") if name in CONTRASTS]
    chosen = contrasts if lazy is None else lazy
    parameters: dict[str, dict[str, Any]] = {name: {"beta": BETA} for name in contrasts}
    eager = build_stack(names, **parameters)
    return eager, build_stack(names, **parameters | {name: {"beta": BETA, "lazy": True} for name in chosen})


def assert_equal(lazy: Answer, eager: Answer) -> None:
    assert [token.id for token in lazy.tokens] == [token.id for token in eager.tokens]
    assert lazy.finish.usage.changed_steps == eager.finish.usage.changed_steps
    for one, other in zip(lazy.tokens, eager.tokens, strict=True):
        ranked, others = ([each.logprob for each in (token.chosen, *token.top) if each] for token in (one, other))
        assert ranked == pytest.approx(others, abs=2e-3)  # -inf included


def count_passes(answer: Answer) -> int:
    return answer.finish.usage.forward_passes


def test_every_contrast_with_a_cut_on_the_main_row_has_the_option() -> None:
    assert [name for name, kind in list_strategies().items() if issubclass(kind, PlausibleContrast)] == list(CONTRASTS)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("names", STACKS)
async def test_output_equals_that_of_eager_branches(names: str, sampling: str, engine: HFEngine) -> None:
    eager, lazy = build_pair(names)
    prompt = make_prompt(seed=1)
    expected, _ = await run_strategies(engine, eager, prompt, SAMPLINGS[sampling])
    found, _ = await run_strategies(engine, lazy, prompt, SAMPLINGS[sampling])
    assert_equal(found, expected)
    assert LENGTH <= count_passes(found) < count_passes(expected)


@pytest.mark.parametrize("lazy", [["vcd"], ["agla"]])
async def test_lazy_and_eager_contrasts_compose(lazy: list[str], engine: HFEngine) -> None:
    eager_stack, lazy_stack = build_pair("vcd+agla", lazy)
    prompt = make_prompt(seed=1)
    expected, _ = await run_strategies(engine, eager_stack, prompt, SAMPLINGS["greedy"])
    found, _ = await run_strategies(engine, lazy_stack, prompt, SAMPLINGS["greedy"])
    assert_equal(found, expected)
    assert 2 * LENGTH < count_passes(found) < count_passes(expected) == 3 * LENGTH


async def test_answers_in_a_batch_equal_those_alone(either: HFEngine) -> None:
    """Branches with and without dropped image tokens catch up in one pass."""
    cases = [
        (stack, make_prompt(seed), exact_length(LENGTH - seed, top_logprobs=5))
        for seed, names in enumerate((*CONTRASTS, "avisc+sid", "vcd"))
        for stack in build_pair(names)
    ]
    together = [answer for answer, _ in await asyncio.gather(*(run_strategies(either, *each) for each in cases))]
    for case, answer in zip(cases, together, strict=True):
        alone, _ = await run_strategies(either, *case)
        assert_equal(answer, alone)
        assert count_passes(answer) == count_passes(alone)
    for eager, lazy in zip(together[::2], together[1::2], strict=True):
        assert_equal(lazy, eager)


async def test_lazy_branches_do_not_run_where_nothing_passes_the_cut_beside_the_likeliest_token(
    engine: HFEngine,
) -> None:
    (strategy,) = build_stack("vcd", vcd={"lazy": True, "beta": 1})
    found, _ = await run_strategies(engine, (strategy,), make_prompt(), exact_length(LENGTH))
    plain, _ = await run_strategies(engine, "plain", make_prompt(), exact_length(LENGTH))
    assert found.text == plain.text
    assert count_passes(found) == LENGTH


async def test_every_step_without_a_cut_needs_the_branches(engine: HFEngine) -> None:
    (strategy,) = build_stack("vcd", vcd={"lazy": True, "beta": 0})
    found, _ = await run_strategies(engine, (strategy,), make_prompt(), exact_length(LENGTH))
    assert count_passes(found) == 2 * LENGTH


@pytest.mark.parametrize("name", CONTRASTS)
async def test_caption_of_the_embedded_model_takes_fewer_passes(name: str, embedded: HFEngine) -> None:
    prompt = Prompt.from_text("Please describe this image in detail.", ImageInput(Image.open(SCENE).convert("RGB")))
    sampling = SamplingParams(max_tokens=64, top_logprobs=5)
    expected, _ = await run_strategies(embedded, name, prompt, sampling)
    found, _ = await run_strategies(embedded, build_stack(name, **{name: {"lazy": True}}), prompt, sampling)
    assert_equal(found, expected)
    assert count_passes(found) < count_passes(expected)
