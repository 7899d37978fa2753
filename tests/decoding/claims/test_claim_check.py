"""`"check": true` beside a stack: the answer stays as it is, and its claims come sentence by sentence."""

from __future__ import annotations

import pytest

from decoding.claims.claim_check import ClaimCheck
from decoding.errors import BadRequest
from decoding.outputs import Answer, FinishInfo, Token, Usage
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, Prompt
from decoding.strategies.plain import Plain
from decoding.strategies.verify import Verify
from decoding.strategy import Program, Strategy
from tests.decoding.fakes import make_request
from tests.decoding.scripted_engine import ScriptedEngine

SCENE = "The image shows a dog. There is a cat."


class BuildsAnswer(Strategy):
    """Build the answer without decoding."""

    name = "vote"
    paper = "none"

    def run(self, request: GenerateRequest) -> Program:
        if request.scored_texts:
            return request
        finish = FinishInfo("stop", Usage(completion_tokens=1, steps=1))
        return Answer("There is a dog.", (Token(-1, "There is a dog.", finish=finish),), finish)
        yield


def engine(text: str = SCENE) -> ScriptedEngine:
    return ScriptedEngine(lambda prefix, ruled_out, seed: text[len(prefix) :], {"cat": 0.25})


async def test_the_answer_is_that_of_the_stack() -> None:
    scripted = engine()
    async with StrategyRunner([Plain()], scripted) as runner:
        plain = await collect_answer(runner.stream(await runner.resolve(make_request("Describe."))))
        checked = await collect_answer(
            runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck(views=0)))
        )
    assert [token.id for token in checked.tokens if not token.claims] == [token.id for token in plain.tokens]
    assert checked.text == plain.text
    assert checked.finish.usage == plain.finish.usage
    assert checked.finish.reason == plain.finish.reason


async def test_claims_follow_their_sentence() -> None:
    async with StrategyRunner([Plain()], engine()) as runner:
        text, seen = "", {}
        async for token in runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck(views=0))):
            text += token.text
            seen |= {claim.text: (text, claim) for claim in token.claims}
    assert seen["dog"][0].startswith("The image shows a dog.")
    assert "cat" not in seen["dog"][0], "the claims of the first sentence come before the end of the second"
    claim = seen["cat"][1]
    assert (claim.start, claim.end, claim.question) == (34, 37, "Is there a cat in the image?")
    assert claim.probability == pytest.approx(0.25)
    assert claim.action is None


async def test_the_checks_are_counted() -> None:
    async with StrategyRunner([Plain()], engine()) as runner:
        await collect_answer(runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck(views=0))))
    assert runner.prior_usage.forward_passes == 2


async def test_a_check_is_about_three_views() -> None:
    questioned = engine()
    async with StrategyRunner([Plain()], questioned) as runner:
        await collect_answer(runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck())))
    assert runner.prior_usage.forward_passes == 6
    requests = [each for each in questioned.history if isinstance(each, GenerateRequest) and each.scored_texts]
    assert len({each.prompt.images[0].shift for each in requests}) == 3


async def test_a_check_needs_an_image() -> None:
    async with StrategyRunner([Plain()], engine()) as runner:
        request = GenerateRequest(Prompt.from_text("Describe a park."))
        with pytest.raises(BadRequest, match="needs an image") as refused:
            await collect_answer(runner.stream(await runner.resolve(request, check=ClaimCheck(views=0))))
    assert refused.value.param == "decoding.check"


async def test_an_answer_that_a_strategy_builds_is_checked() -> None:
    async with StrategyRunner([BuildsAnswer()], engine()) as runner:
        answer = await collect_answer(
            runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck(views=0)))
        )
    assert answer.text == "There is a dog."
    assert [claim.text for token in answer.tokens for claim in token.claims] == ["dog"]


async def test_an_answer_that_is_verified_is_checked() -> None:
    async with StrategyRunner([Verify(tries=0)], engine()) as runner:
        answer = await collect_answer(
            runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck(views=0)))
        )
    assert answer.text == "The image shows a dog."


async def test_a_stream_that_is_closed_ends_the_draft() -> None:
    scripted = engine("There is a dog. " * 50)
    async with StrategyRunner([Plain()], scripted) as runner:
        stream = runner.stream(await runner.resolve(make_request("Describe."), check=ClaimCheck(views=0)))
        await anext(stream)
        await stream.aclose()
    assert scripted.running == 0
