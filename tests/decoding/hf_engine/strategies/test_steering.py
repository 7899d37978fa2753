"""Steered requests beside others, their prefix cache, and their failures."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar

import pytest
from torch import Tensor

from decoding.errors import BadRequest, StrategyFailed, Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.strategy import LayerPlace, SteeredLayers, Strategy, Tensors
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference
from tests.decoding.hf_engine.strategies.test_exactness import STACKS

LENGTH = 12
PROMPT = make_prompt(seed=2)
MIXED = ("steer", "plain", "steer the answer", "steer a feed-forward", "vcd", "steer", "steer an attention", "pai")


class Fails(Strategy):
    """Fails in the last layer."""

    name: ClassVar[str] = "fails"
    paper: ClassVar[str] = "none"
    layer: int = -1

    def steered_layers(self, layers: int) -> SteeredLayers:
        return SteeredLayers((layers + self.layer,))

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        raise ZeroDivisionError


async def test_mixed_batch_equals_recomputation(engine: HFEngine, reference_of_tiny: Reference) -> None:
    prompts = [make_prompt(seed=seed, text="What is this?" * (1 + seed)) for seed in range(len(MIXED))]
    answers = await asyncio.gather(
        *(
            run_strategies(engine, STACKS[names], prompt, exact_length(LENGTH))
            for names, prompt in zip(MIXED, prompts, strict=True)
        )
    )
    for names, prompt, (answer, _) in zip(MIXED, prompts, answers, strict=True):
        expected = reference_of_tiny.decode(STACKS[names], prompt, LENGTH).tokens
        assert [token.id for token in answer.tokens] == expected, names


@pytest.mark.parametrize(("names", "is_cached"), [("steer", False), ("steer the answer", True)])
async def test_only_a_plain_prompt_uses_the_prefix_cache(names: str, is_cached: bool, engine: HFEngine) -> None:
    await run_strategies(engine, "plain", PROMPT, exact_length(1))
    hits = engine.worker.prefix_cache.hits
    answer, _ = await run_strategies(engine, STACKS[names], PROMPT, exact_length(LENGTH))
    assert (engine.worker.prefix_cache.hits > hits) == is_cached
    assert answer.finish.usage.changed_steps is None


async def test_failing_hook_fails_its_own_request(engine: HFEngine, captured_logs: None) -> None:
    plain, steered, failed = await asyncio.gather(
        run_strategies(engine, "plain", PROMPT, exact_length(LENGTH)),
        run_strategies(engine, STACKS["steer"], PROMPT, exact_length(LENGTH)),
        run_strategies(engine, (Fails(),), PROMPT, exact_length(LENGTH)),
        return_exceptions=True,
    )
    assert isinstance(failed, StrategyFailed)
    assert failed.strategy == "fails"
    assert not isinstance(plain, BaseException)
    assert not isinstance(steered, BaseException)


async def test_layer_that_the_model_lacks_is_refused(engine: HFEngine) -> None:
    with pytest.raises(BadRequest, match="'fails' steers layer 6; the model has the layers 0 to 5"):
        await run_strategies(engine, (Fails(layer=0),), PROMPT, exact_length(1))


async def test_unknown_file_is_refused(engine: HFEngine) -> None:
    stack = build_stack("steer", steer={"vectors": "other.safetensors"})
    with pytest.raises(BadRequest, match="the server has no steering vectors 'other.safetensors'") as refused:  # noqa: RUF043
        await run_strategies(engine, stack, PROMPT, exact_length(1))
    assert refused.value.param == "decoding.steer.vectors"
    with pytest.raises(BadRequest, match=r"decoding\.steer\.vectors: String should match pattern"):
        build_stack("steer", steer={"vectors": "../other.safetensors"})


async def test_server_without_a_folder_refuses_vectors(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "vectors" in engine.capabilities
    monkeypatch.setattr(engine, "settings", replace(engine.settings, vectors=None))
    assert "vectors" not in engine.capabilities
    with pytest.raises(Unsupported, match="start it with --steering-vectors"):
        await run_strategies(engine, STACKS["steer"], PROMPT, exact_length(1))
