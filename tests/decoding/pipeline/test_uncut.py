"""Checks read the probabilities of Yes and No before the cuts of the inner strategies."""

from __future__ import annotations

import pytest

from decoding.claims.claim_check import ClaimCheck
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest
from tests.decoding.fakes import make_request
from tests.decoding.scripted_engine import ScriptedEngine


@pytest.mark.parametrize("inner", ["vcd", "agla", "dola", "code+vcd", "sharpen+truncate"])
async def test_checks_are_uncut_and_other_requests_are_not(inner: str) -> None:
    engine = ScriptedEngine(lambda prefix, ruled_out, seed: "There is a dog.", {})
    async with StrategyRunner(build(inner, {}), engine) as runner:
        outcome = await runner.resolve(make_request("Describe."), check=ClaimCheck(views=1))
        answer = await collect_answer(runner.stream(outcome))
    assert answer.text == "There is a dog."
    checks = [each for each in engine.history if isinstance(each, GenerateRequest) and each.scored_texts]
    others = [each for each in engine.history if isinstance(each, GenerateRequest) and not each.scored_texts]
    assert checks
    assert all(strategy.model_dump()["beta"] == 0 for check in checks for strategy in check.stack)
    assert all(strategy.model_dump()["beta"] > 0 for other in others for strategy in other.stack)
