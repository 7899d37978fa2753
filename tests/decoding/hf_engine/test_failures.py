"""Failures of one request and of all running requests. The engine continues after either."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest
import structlog
import torch
from torch import Tensor

from decoding.errors import BadRequest, EngineFailed
from decoding.hf_engine import batch as batch_module
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.kv_cache.aligned_cache import AlignedCache
from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.outputs import Answer
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, ProbeRequest
from decoding.strategy import Activations, AttentionKeys, Step, Strategy, Tensors
from decoding.text.prompt_encoder import ModelInputs
from tests.decoding.failing_strategy import FailingInsideModel, FailingStrategy
from tests.decoding.hf_engine.harness import (
    build_stack,
    exact_length,
    generate,
    make_probe,
    make_prompt,
    pause_worker,
    run_strategies,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("captured_logs")


class Broken(Strategy):
    name: ClassVar[str] = "broken"
    paper: ClassVar[str] = "none"
    after: int = 0

    def logits(self, step: Step) -> Tensor:
        if int(step.position.max()) >= self.after:
            raise ZeroDivisionError
        return step.scores

    def update_state(self, state: Tensors, captured: Activations) -> Tensors:
        raise ZeroDivisionError


class WrongLayout(Strategy):
    """Changes the shape or the dtype."""

    name: ClassVar[str] = "wrong_layout"
    paper: ClassVar[str] = "none"
    cropped: bool = False

    def logits(self, step: Step) -> Tensor:
        return step.scores[..., 1:] if self.cropped else step.scores.double()


class BrokenAttention(Strategy):
    """Attention hook that raises from token `after` on."""

    name: ClassVar[str] = "broken_attention"
    paper: ClassVar[str] = "none"
    prompt: int
    after: int = 0

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
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
    """Scales all heads without a probe."""

    name: ClassVar[str] = "fixed"
    paper: ClassVar[str] = "none"
    alpha: float
    layers: int = 6

    def head_scales(self, state: Tensors) -> Tensor:
        return torch.full((self.layers, 4), self.alpha, dtype=torch.float64)


class KeepsOnes(Strategy):
    """Keeps all image tokens, with a mask of any shape and type."""

    name: ClassVar[str] = "keeps_ones"
    paper: ClassVar[str] = "none"
    mask_layers: int
    mask_tokens: int
    is_bool: bool = True

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("part", request.prompt)

    def keep_image_tokens(self, state: Tensors) -> Tensor:
        return torch.ones(self.mask_layers, self.mask_tokens, dtype=torch.bool if self.is_bool else torch.long)


async def assert_healthy(engine: HFEngine) -> None:
    await wait_until(lambda: not engine.worker.batch.rows)
    assert len((await generate(engine, make_prompt(), exact_length(3))).tokens) == 3


@pytest.mark.parametrize("after", [0, 4])
async def test_failing_strategy_fails_only_its_request(after: int, engine: HFEngine) -> None:
    alone = [(await generate(engine, make_prompt(seed), exact_length(30))).text for seed in range(3)]
    requests = [
        collect_answer(engine.generate(GenerateRequest(make_prompt(seed), exact_length(30)))) for seed in range(3)
    ]
    broken = collect_answer(
        engine.generate(GenerateRequest(make_prompt(4), exact_length(30), stack=(Broken(after=after),)))
    )
    *completed, failed = await asyncio.gather(*requests, broken, return_exceptions=True)
    assert isinstance(failed, EngineFailed)
    assert [one.text for one in completed if isinstance(one, Answer)] == alone
    await assert_healthy(engine)


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("companions", [0, 2])
async def test_wrong_shape_or_dtype_fails_only_its_request(companions: int, cropped: bool, engine: HFEngine) -> None:
    """Alone in the batch or not, the requests that join next must not fail."""
    batch = engine.worker.batch
    others = [generate(engine, make_prompt(seed), exact_length(12)) for seed in range(companions)]
    wrong_layout = collect_answer(
        engine.generate(GenerateRequest(make_prompt(4), exact_length(12), stack=(WrongLayout(cropped=cropped),)))
    )
    *completed, failed = await asyncio.gather(*others, wrong_layout, return_exceptions=True)
    assert isinstance(failed, EngineFailed)
    assert all(isinstance(one, Answer) for one in completed)
    assert engine.worker.batch is batch
    await assert_healthy(engine)


@pytest.mark.parametrize("after", [0, 4])
async def test_failing_attention_edit_fails_only_its_requests(after: int, engine: HFEngine) -> None:
    """One of the two equal requests shares the other's prefill, and fails with it."""
    alone = [(await generate(engine, make_prompt(seed), exact_length(12))).text for seed in range(2)]
    broken_attention = BrokenAttention(prompt=len(engine.model.encoder.encode(make_prompt(4))), after=after)
    async with pause_worker(engine):
        requests = [GenerateRequest(make_prompt(seed), exact_length(12)) for seed in range(2)] + [
            GenerateRequest(make_prompt(4), exact_length(12), stack=(broken_attention,))
        ] * 2
        answers = [asyncio.ensure_future(collect_answer(engine.generate(request))) for request in requests]
        await wait_until(lambda: engine.worker._inbox.qsize() == len(requests))
    *completed, one, other = await asyncio.gather(*answers, return_exceptions=True)
    assert isinstance(one, EngineFailed)
    assert isinstance(other, EngineFailed)
    assert [one.text for one in completed if isinstance(one, Answer)] == alone
    await assert_healthy(engine)


async def test_wrong_head_scales_shape_fails_only_its_request(engine: HFEngine) -> None:
    other = asyncio.create_task(generate(engine, make_prompt(1), exact_length(20)))
    with pytest.raises(EngineFailed):
        await collect_answer(
            engine.generate(GenerateRequest(make_prompt(), exact_length(3), stack=(Fixed(alpha=2.0, layers=1),)))
        )
    assert len((await other).tokens) == 20
    await assert_healthy(engine)


@pytest.mark.parametrize(
    "failing",
    [
        GenerateRequest(make_prompt(), exact_length(3), updates_state=True, strategy=Broken()),
        GenerateRequest(make_prompt(), stack=(Broken(),), scored_texts=("Yes", "No")),
    ],
    ids=["update_state", "scored_texts"],
)
async def test_failing_hooks_fail_only_their_request(failing: GenerateRequest, engine: HFEngine) -> None:
    other = asyncio.create_task(generate(engine, make_prompt(1), exact_length(20)))
    with pytest.raises(EngineFailed):
        await collect_answer(engine.generate(failing))
    assert len((await other).tokens) == 20
    await assert_healthy(engine)


async def test_unhashable_strategy_is_served(engine: HFEngine) -> None:
    requests = [GenerateRequest(make_prompt(), exact_length(5), stack=(Unhashable(words=[word]),)) for word in "ab"]
    completed = await asyncio.gather(*(collect_answer(engine.generate(request)) for request in requests))
    assert {one.text for one in completed} == {(await generate(engine, make_prompt(), exact_length(5))).text}


async def test_requests_with_different_head_scales_do_not_share_a_prefill(engine: HFEngine) -> None:
    """Previously, requests shared a prefill if their states were equal, as here, where they have none."""
    requests = [
        GenerateRequest(make_prompt(), exact_length(10), stack=(Fixed(alpha=alpha),)) for alpha in (1.0, 1.5, 2.0)
    ]
    alone = [(await collect_answer(engine.generate(request))).text for request in requests]
    together = await asyncio.gather(*(collect_answer(engine.generate(request)) for request in requests))
    assert [completed.text for completed in together] == alone
    assert len(set(alone)) == 3
    assert alone[0] == (await generate(engine, make_prompt(), exact_length(10))).text


async def test_failing_prefill_fails_only_its_request(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = Model.prefill
    bad_prompt = make_prompt(seed=9, text="Is there a person? " * 9)
    bad_length = len(engine.model.encoder.encode(bad_prompt))

    def failing_prefill(model: Model, prompts: list[ModelInputs], factors: Tensor | None = None) -> list[PrefillOutput]:
        if any(len(one) == bad_length for one in prompts):
            raise RuntimeError("out of memory")
        return prefill(model, prompts, factors)

    alone = [
        (await generate(engine, make_prompt(seed), exact_length(20, temperature=1.0, seed=1))).text for seed in range(3)
    ]
    monkeypatch.setattr(Model, "prefill", failing_prefill)
    async with pause_worker(engine):
        tasks = [
            asyncio.create_task(generate(engine, make_prompt(i), exact_length(20, temperature=1.0, seed=1)))
            for i in range(3)
        ]
        bad = asyncio.create_task(generate(engine, bad_prompt, exact_length(20)))
        await wait_until(lambda: engine.worker._inbox.qsize() == 4)
    *completed, failed = await asyncio.gather(*tasks, bad, return_exceptions=True)
    assert isinstance(failed, EngineFailed)
    assert [one.text for one in completed if isinstance(one, Answer)] == alone
    assert all(one.finish.usage.forward_passes == 20 for one in completed if isinstance(one, Answer))
    await assert_healthy(engine)


async def test_failing_step_fails_running_requests_only(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, steps = Model.decode, iter(range(100))

    def fail_at_the_fifth_step(model: Model, *given: Any) -> Tensor:
        if next(steps) == 5:
            raise RuntimeError("out of memory")
        return decode(model, *given)

    monkeypatch.setattr(Model, "decode", fail_at_the_fifth_step)
    requests = [
        collect_answer(engine.generate(GenerateRequest(make_prompt(seed), exact_length(30)))) for seed in range(3)
    ]
    failed = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(one) for one in failed] == [EngineFailed] * 3
    assert "memory" not in str(failed[0])
    monkeypatch.undo()
    await assert_healthy(engine)
    await wait_until(lambda: engine.worker.batch.cache.rows == 0)


@pytest.mark.parametrize(("target", "name"), [(batch_module, "sample_tokens"), (AlignedCache, "add_row")])
async def test_failing_join_leaves_no_rows(
    target: Any, name: str, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, works = iter(range(100)), getattr(target, name)
    broken = 0 if name == "choose" else 1

    def fail_once(*given: Any) -> Any:
        if next(calls) == broken:
            raise RuntimeError("out of memory")
        return works(*given)

    alone = (await generate(engine, make_prompt(), exact_length(10))).text
    monkeypatch.setattr(target, name, fail_once)
    async with pause_worker(engine):
        tasks = [asyncio.create_task(generate(engine, make_prompt(seed), exact_length(10))) for seed in range(3)]
        await wait_until(lambda: engine.worker._inbox.qsize() == 3)
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in failed] == [EngineFailed] * 3
    assert (await generate(engine, make_prompt(), exact_length(10))).text == alone
    await assert_healthy(engine)


async def test_failing_probe_raises_engine_failed(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    (vhr,) = build_stack("vhr")
    monkeypatch.setattr(type(vhr), "update_state", Broken.update_state)
    with pytest.raises(EngineFailed):
        await engine.probe(make_probe())
    assert not engine._states
    await assert_healthy(engine)


async def test_bad_request_is_rejected_before_it_runs(engine: HFEngine) -> None:
    with pytest.raises(BadRequest):
        await generate(engine, make_prompt(text="</s>"), exact_length(1))
    assert not engine._reservations


async def fail_beside_others(engine: HFEngine, failing: Any) -> str:
    """Run a failing request beside others, check the others and the log, and return the message of the failure."""
    alone = [(await generate(engine, make_prompt(seed), exact_length(12))).text for seed in (1, 2)]
    others = [asyncio.create_task(generate(engine, make_prompt(seed), exact_length(12))) for seed in (1, 2)]
    with structlog.testing.capture_logs() as logs, pytest.raises(EngineFailed) as failure:
        await failing
    assert [(await other).text for other in others] == alone
    assert len([entry for entry in logs if entry["log_level"] == "error" and entry["exc_info"]]) == 1
    return failure.value.message


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (FailingStrategy(hook="nan"), "Strategy 'failing' returned nan logits."),
        (FailingStrategy(hook="-inf"), "Strategy 'failing' left no token: all logits are -inf."),
        (FailingStrategy(hook="logits"), "Strategy 'failing' failed: ValueError."),
        *(
            (strategy, "Strategy 'failing' failed: ZeroDivisionError.")
            for strategy in (
                FailingStrategy(hook="needs_branches"),
                FailingStrategy(hook="head_scales"),
                FailingStrategy(hook="edit_attention_scores"),
                FailingInsideModel(hook="keep_image_tokens"),
                FailingStrategy(hook="early_exit_layers"),
            )
        ),
    ],
    ids=lambda value: getattr(value, "hook", ""),
)
async def test_failing_hook_fails_its_own_request_only(strategy: Strategy, message: str, engine: HFEngine) -> None:
    failing = run_strategies(engine, (strategy,), make_prompt(4), exact_length(12))
    assert await fail_beside_others(engine, failing) == message


@pytest.mark.parametrize("hook", ["shape", "head_scales shape", "scores shape"])
async def test_wrong_shape_fails_its_own_request_only(hook: str, engine: HFEngine) -> None:
    failing = run_strategies(engine, (FailingStrategy(hook=hook),), make_prompt(4), exact_length(12))
    assert "'failing' returned" in await fail_beside_others(engine, failing)


@pytest.mark.parametrize(("layers", "tokens"), [(0, -1), (0, 1), (-1, 0), (1, 0)])
async def test_mask_of_another_shape_fails_its_own_request(layers: int, tokens: int, engine: HFEngine) -> None:
    model = engine.model
    expected = [model.num_layers, int((model.encoder.encode(make_prompt(4)).ids == model.image_token_id).sum())]
    found = [expected[0] + layers, expected[1] + tokens]
    strategy = KeepsOnes(mask_layers=found[0], mask_tokens=found[1])
    message = await fail_beside_others(engine, run_strategies(engine, (strategy,), make_prompt(4), exact_length(12)))
    assert message == f"Strategy 'keeps_ones' returned {found} from `keep_image_tokens` instead of {expected}."


async def test_mask_of_another_type_fails_its_own_request(engine: HFEngine) -> None:
    model = engine.model
    tokens = int((model.encoder.encode(make_prompt(4)).ids == model.image_token_id).sum())
    strategy = KeepsOnes(mask_layers=model.num_layers, mask_tokens=tokens, is_bool=False)
    message = await fail_beside_others(engine, run_strategies(engine, (strategy,), make_prompt(4), exact_length(12)))
    assert message == "Strategy 'keeps_ones' returned torch.int64 from `keep_image_tokens` instead of torch.bool."


async def test_failing_update_state_fails_its_own_request_only(engine: HFEngine) -> None:
    request = GenerateRequest(make_prompt(4), exact_length(12), updates_state=True, strategy=FailingStrategy())
    message = await fail_beside_others(engine, collect_answer(engine.generate(request)))
    assert message == "Strategy 'failing' failed: ZeroDivisionError."


async def test_failing_probe_fails_its_own_request_only(engine: HFEngine) -> None:
    probe = ProbeRequest({"main": make_prompt(4)}, main="main").with_strategy(FailingStrategy())
    assert await fail_beside_others(engine, engine.probe(probe)) == "Strategy 'failing' failed: ZeroDivisionError."
