"""What breaks one request, and what breaks all that run; the engine goes on after either."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from decoding.answer import Answer
from decoding.ask import Ask
from decoding.encoder import Encoded
from decoding.errors import BadRequest, EngineFailed
from decoding.hf_engine import batch as batch_module
from decoding.hf_engine.cache import AlignedCache
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import Model, Prefilled
from decoding.stack import collect
from decoding.strategy import Captured, Keys, Step, Strategy, Tensors
from tests.decoding.hf_engine.asking import exactly, held, probing, prompt, say, stack, until

pytestmark = pytest.mark.usefixtures("quiet")


class Broken(Strategy):
    name: ClassVar[str] = "broken"
    paper: ClassVar[str] = "none"
    after: int = 0

    def logits(self, step: Step) -> Tensor:
        if int(step.position.max()) >= self.after:
            raise ZeroDivisionError
        return step.scores

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        raise ZeroDivisionError


class Careless(Strategy):
    """Does not keep what it is given in shape or dtype."""

    name: ClassVar[str] = "careless"
    paper: ClassVar[str] = "none"
    cropped: bool = False

    def logits(self, step: Step) -> Tensor:
        return step.scores[..., 1:] if self.cropped else step.scores.double()


class Deranged(Strategy):
    """Raises inside the model, from the `after`th token on."""

    name: ClassVar[str] = "deranged"
    paper: ClassVar[str] = "none"
    prompt: int
    after: int = 0

    def attend(self, scores: Tensor, keys: Keys, memory: Tensors) -> Tensor:
        if scores.shape[-1] >= self.prompt + self.after:
            raise ZeroDivisionError
        return scores


class Unhashable(Strategy):
    name: ClassVar[str] = "unhashable"
    paper: ClassVar[str] = "none"
    words: list[str]

    def logits(self, step: Step) -> Tensor:
        return step.scores


class Fixed(Strategy):
    """Scales all heads, without having looked at anything."""

    name: ClassVar[str] = "fixed"
    paper: ClassVar[str] = "none"
    alpha: float
    layers: int = 6

    def heads(self, memory: Tensors) -> Tensor:
        return torch.full((self.layers, 4), self.alpha, dtype=torch.float64)


async def healthy(engine: HFEngine) -> None:
    await until(lambda: not engine.worker.batch.rows)
    assert len((await say(engine, prompt(), exactly(3))).tokens) == 3


@pytest.mark.parametrize("after", [0, 4])
async def test_a_strategy_that_raises_fails_its_own_request_alone(after: int, engine: HFEngine) -> None:
    alone = [(await say(engine, prompt(seed), exactly(30))).text for seed in range(3)]
    asks = [collect(engine.generate(Ask(prompt(seed), exactly(30)))) for seed in range(3)]
    broken = collect(engine.generate(Ask(prompt(4), exactly(30), stack=(Broken(after=after),))))
    *said, failed = await asyncio.gather(*asks, broken, return_exceptions=True)
    assert isinstance(failed, EngineFailed)
    assert [one.text for one in said if isinstance(one, Answer)] == alone
    await healthy(engine)


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("companions", [0, 2])
async def test_so_does_one_that_does_not_keep_shape_or_dtype(companions: int, cropped: bool, engine: HFEngine) -> None:
    """Whether it is alone in the batch or not: those that join next would fail with the step."""
    batch = engine.worker.batch
    others = [say(engine, prompt(seed), exactly(12)) for seed in range(companions)]
    careless = collect(engine.generate(Ask(prompt(4), exactly(12), stack=(Careless(cropped=cropped),))))
    *said, failed = await asyncio.gather(*others, careless, return_exceptions=True)
    assert isinstance(failed, EngineFailed)
    assert all(isinstance(one, Answer) for one in said)
    assert engine.worker.batch is batch
    await healthy(engine)


@pytest.mark.parametrize("after", [0, 4])
async def test_a_strategy_that_raises_inside_the_model_fails_its_own_requests_alone(
    after: int, engine: HFEngine
) -> None:
    """One of the two equal requests waits for the other's prompt, and fails with it."""
    alone = [(await say(engine, prompt(seed), exactly(12))).text for seed in range(2)]
    deranged = Deranged(prompt=len(engine.model.encoder.encode(prompt(4))), after=after)
    async with held(engine):
        asks = [Ask(prompt(seed), exactly(12)) for seed in range(2)] + [
            Ask(prompt(4), exactly(12), stack=(deranged,))
        ] * 2
        answers = [asyncio.ensure_future(collect(engine.generate(ask))) for ask in asks]
        await until(lambda: engine.worker._inbox.qsize() == len(asks))
    *said, one, other = await asyncio.gather(*answers, return_exceptions=True)
    assert isinstance(one, EngineFailed)
    assert isinstance(other, EngineFailed)
    assert [one.text for one in said if isinstance(one, Answer)] == alone
    await healthy(engine)


async def test_factors_of_another_shape_fail_their_request_alone(engine: HFEngine) -> None:
    other = asyncio.create_task(say(engine, prompt(1), exactly(20)))
    with pytest.raises(EngineFailed):
        await collect(engine.generate(Ask(prompt(), exactly(3), stack=(Fixed(alpha=2.0, layers=1),))))
    assert len((await other).tokens) == 20
    await healthy(engine)


@pytest.mark.parametrize(
    "ask",
    [
        Ask(prompt(), exactly(3), digest=Broken()),
        Ask(prompt(), stack=(Broken(),), choices=("Yes", "No")),
    ],
    ids=["digest", "choices"],
)
async def test_so_does_one_that_raises_elsewhere(ask: Ask, engine: HFEngine) -> None:
    other = asyncio.create_task(say(engine, prompt(1), exactly(20)))
    with pytest.raises(EngineFailed):
        await collect(engine.generate(ask))
    assert len((await other).tokens) == 20
    await healthy(engine)


async def test_a_strategy_that_cannot_be_hashed_is_served_like_any(engine: HFEngine) -> None:
    asks = [Ask(prompt(), exactly(5), stack=(Unhashable(words=[word]),)) for word in "ab"]
    said = await asyncio.gather(*(collect(engine.generate(ask)) for ask in asks))
    assert {one.text for one in said} == {(await say(engine, prompt(), exactly(5))).text}


async def test_heads_scaled_by_a_parameter_are_not_mistaken_for_one_another(engine: HFEngine) -> None:
    """Previously, prompts were run once for all requests whose memories were the same: none, here."""
    asks = [Ask(prompt(), exactly(10), stack=(Fixed(alpha=alpha),)) for alpha in (1.0, 1.5, 2.0)]
    alone = [(await collect(engine.generate(ask))).text for ask in asks]
    together = await asyncio.gather(*(collect(engine.generate(ask)) for ask in asks))
    assert [said.text for said in together] == alone
    assert len(set(alone)) == 3
    assert alone[0] == (await say(engine, prompt(), exactly(10))).text


async def test_a_prompt_that_cannot_be_run_fails_its_own_request_alone(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = Model.prefill
    poisonous = prompt(seed=9, text="Is there a person? " * 9)
    poison = len(engine.model.encoder.encode(poisonous))

    def picky(model: Model, prompts: list[Encoded], factors: Tensor | None = None) -> list[Prefilled]:
        if any(len(one) == poison for one in prompts):
            raise RuntimeError("out of memory")
        return prefill(model, prompts, factors)

    alone = [(await say(engine, prompt(seed), exactly(20, temperature=1.0, seed=1))).text for seed in range(3)]
    monkeypatch.setattr(Model, "prefill", picky)
    async with held(engine):
        tasks = [asyncio.create_task(say(engine, prompt(i), exactly(20, temperature=1.0, seed=1))) for i in range(3)]
        bad = asyncio.create_task(say(engine, poisonous, exactly(20)))
        await until(lambda: engine.worker._inbox.qsize() == 4)
    *said, failed = await asyncio.gather(*tasks, bad, return_exceptions=True)
    assert isinstance(failed, EngineFailed)
    assert [one.text for one in said if isinstance(one, Answer)] == alone
    assert all(one.end.usage.forward_passes == 20 for one in said if isinstance(one, Answer))
    await healthy(engine)


async def test_a_step_that_fails_fails_what_runs_and_the_engine_goes_on(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, steps = Model.decode, iter(range(100))

    def failing(model: Model, *given: Any) -> Tensor:
        if next(steps) == 5:
            raise RuntimeError("out of memory")
        return decode(model, *given)

    monkeypatch.setattr(Model, "decode", failing)
    asks = [collect(engine.generate(Ask(prompt(seed), exactly(30)))) for seed in range(3)]
    failed = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(one) for one in failed] == [EngineFailed] * 3
    assert "memory" not in str(failed[0])
    monkeypatch.undo()
    await healthy(engine)
    await until(lambda: engine.worker.batch.cache.rows == 0)


@pytest.mark.parametrize(("owner", "name"), [(batch_module, "choose"), (AlignedCache, "join")])
async def test_a_join_that_fails_half_way_leaves_no_rows(
    owner: Any, name: str, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, works = iter(range(100)), getattr(owner, name)
    broken = 0 if name == "choose" else 1

    def failing(*given: Any) -> Any:
        if next(calls) == broken:
            raise RuntimeError("out of memory")
        return works(*given)

    alone = (await say(engine, prompt(), exactly(10))).text
    monkeypatch.setattr(owner, name, failing)
    async with held(engine):
        tasks = [asyncio.create_task(say(engine, prompt(seed), exactly(10))) for seed in range(3)]
        await until(lambda: engine.worker._inbox.qsize() == 3)
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in failed] == [EngineFailed] * 3
    assert (await say(engine, prompt(), exactly(10))).text == alone
    await healthy(engine)


async def test_a_probe_that_fails_says_so(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    (vhr,) = stack("vhr")
    monkeypatch.setattr(type(vhr), "digest", Broken.digest)
    with pytest.raises(EngineFailed):
        await engine.probe(probing())
    assert not engine._remembered
    await healthy(engine)


async def test_a_bad_request_is_told_before_anything_runs(engine: HFEngine) -> None:
    with pytest.raises(BadRequest):
        await say(engine, prompt(text="</s>"), exactly(1))
    assert not engine._places
