"""A request says the same whether it runs alone or joins others half-way, and so do the others."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from decoding.ask import Ask
from decoding.hf_engine.engine import HFEngine
from decoding.prompt import Prompt
from decoding.registry import strategies
from decoding.stack import Run
from decoding.strategy import Strategy
from tests.decoding.hf_engine.asking import exactly, prompt, stack, until

LENGTH, LONG = 32, 80
QUESTIONS = [
    "Is there a cat in the image?",
    "How many chairs are in the picture?",
    "Please describe this image in detail.",
]
COMPANIONS = [
    (strategies, prompt(seed=10 + i, text=QUESTIONS[i % 3]), LONG)
    for i, strategies in enumerate(
        [
            stack("plain"),
            stack("vcd"),
            stack("agla+vhr"),
            stack("vdgd+vcd"),
            stack("pai"),
            stack("dola+paint"),
            stack("deco+pai", pai={"gamma": 1.0, "alpha": 0.5}),
        ]
    )
]
NEWCOMERS = [
    *strategies(),
    "avisc+pai",
    "pai+vhr",
    "vcd+vhr",
    "agla+vhr",
    "vdgd+vcd",
    "agla+vcd",
    "m3id+vcd",
]
Wanted = tuple[tuple[Strategy, ...], Prompt, int]


class Speaker:
    """One request of several, and the tokens it has said."""

    def __init__(self, engine: HFEngine, wanted: Wanted) -> None:
        self.strategies, self.prompt, self.length = wanted
        self.engine = engine
        self.said: list[int] = []
        self.spoke = asyncio.Event()

    async def speak(self) -> list[int]:
        async with Run(self.strategies, self.engine) as run:
            outcome = await run.resolve(Ask(self.prompt, exactly(self.length)))
            async with aclosing(run.stream(outcome)) as tokens:
                async for token in tokens:
                    self.said.append(token.id)
                    if len(self.said) >= 3:
                        self.spoke.set()
        self.spoke.set()  # a vote is one word
        return self.said


@pytest.fixture(scope="module")
def expected(either: HFEngine) -> list[list[int]]:
    """What the companions say, each alone."""
    return [asyncio.run(Speaker(either, companion).speak()) for companion in COMPANIONS]


@pytest.mark.parametrize("names", NEWCOMERS)
async def test_joining_seven_others_half_way_changes_nobodys_answer(
    names: str, either: HFEngine, expected: list[list[int]]
) -> None:
    wanted = (stack(names), prompt(seed=2, text=QUESTIONS[0]), LENGTH)
    companions = [Speaker(either, companion) for companion in COMPANIONS]
    newcomer = Speaker(either, wanted)
    async with asyncio.TaskGroup() as group:
        for companion in companions:
            group.create_task(companion.speak())
        await asyncio.gather(*(companion.spoke.wait() for companion in companions))
        joining = group.create_task(newcomer.speak())
        await newcomer.spoke.wait()
        assert not any(len(companion.said) == LONG for companion in companions)
    assert [companion.said for companion in companions] == expected
    assert joining.result() == await Speaker(either, wanted).speak()


@pytest.mark.parametrize("names", ["agla+vcd", "dola+sharpen", "auto+vcd"])
async def test_requests_that_differ_in_numbers_alone_say_what_each_says_alone(names: str, engine: HFEngine) -> None:
    """They share their hooks' calls."""
    betas = [0.0, 0.05, 0.1, 0.3, 0.6]
    asked = [
        (stack(names, **{name: {"beta": beta} for name in names.split("+")}), prompt(seed=3), LENGTH) for beta in betas
    ]
    asked += [(stack("vcd", vcd={"alpha": 4 * beta, "noise_seed": 7}), prompt(seed=3), LENGTH) for beta in betas]
    together = await asyncio.gather(*(Speaker(engine, each).speak() for each in asked))
    assert together == [await Speaker(engine, each).speak() for each in asked]
    assert len({tuple(said) for said in together}) > 2


@pytest.mark.parametrize("names", ["vdgd", "vdgd+vcd", "auto+vdgd"])
async def test_requests_that_remember_leave_one_after_the_other(names: str, engine: HFEngine) -> None:
    """They share their hooks' calls, each with what it remembers; who leaves changes the order of the others."""
    asked = [(stack(names), prompt(seed=20 + i, text=QUESTIONS[i % 3]), length) for i, length in enumerate((6, 12, 24))]
    asked += [(stack("plain"), prompt(seed=3), 9), (stack(names), prompt(seed=24), 24)]
    together = await asyncio.gather(*(Speaker(engine, each).speak() for each in asked))
    assert together == [await Speaker(engine, each).speak() for each in asked]
    await until(lambda: not engine.worker.batch._mixer._kinds)


async def test_equal_requests_at_once_say_the_same(engine: HFEngine) -> None:
    """Their prompts are run once for all of them."""
    wanted = (stack("agla+vhr"), prompt(seed=3), LENGTH)
    said = await asyncio.gather(*(Speaker(engine, wanted).speak() for _ in range(5)))
    assert all(tokens == said[0] for tokens in said)
