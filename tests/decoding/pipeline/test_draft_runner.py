"""A draft: a generation in the background that a strategy reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from decoding.outputs import NO_TOKEN, RequestStats, Token
from decoding.pipeline.draft_runner import Draft
from decoding.pipeline.runner import StrategyRunner, collect_answer
from tests.decoding.fakes import make_request
from tests.decoding.scripted_engine import ScriptedEngine
from tests.third_party_plugin.brief_strategy import Brief


async def test_aborted_draft_counts_passes_before_a_token_of_claims() -> None:
    async def stream() -> AsyncGenerator[Token, None]:
        yield Token(1, "a", stats=RequestStats(prompt_tokens=10, forward_passes=3))
        yield Token(NO_TOKEN, "")
        await asyncio.Event().wait()

    draft = Draft(stream())
    for _ in range(2):
        await draft.read_token()
    await draft.close()
    assert (await draft.compute_usage()).forward_passes == 3


async def abort_after_token(stats: RequestStats) -> Draft:
    async def stream() -> AsyncGenerator[Token, None]:
        yield Token(1, "a", stats=stats)
        await asyncio.Event().wait()

    draft = Draft(stream())
    await draft.read_token()
    await draft.close()
    return draft


async def test_aborted_draft_counts_the_step_in_flight() -> None:
    stats = RequestStats(forward_passes=3, left=asyncio.get_running_loop().create_future())
    draft = await abort_after_token(stats)
    usage = asyncio.create_task(draft.compute_usage())
    await asyncio.sleep(0)
    assert not usage.done()
    stats.forward_passes += 1
    stats.left.set_result(None)  # type: ignore[union-attr]
    assert (await usage).forward_passes == 4


async def test_cancelled_reader_does_not_cancel_the_abort() -> None:
    stats = RequestStats(forward_passes=3, left=asyncio.get_running_loop().create_future())
    draft = await abort_after_token(stats)
    reader = asyncio.create_task(draft.compute_usage())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert stats.left is not None
    assert not stats.left.cancelled()


@pytest.mark.parametrize("outer", [(), (Brief(sentences=1),), (Brief(sentences=2),), (Brief(sentences=0),)])
async def test_each_draft_counts_once_when_an_outer_strategy_ends_the_answer(outer: tuple[Brief, ...]) -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return " A bird sings. A kite flies." if ruled_out else "There is a dog. A cat sits there."

    engine = ScriptedEngine(write, {})
    async with StrategyRunner([*outer, Brief(sentences=0, avoided=("cat",))], engine) as runner:
        answer = await collect_answer(runner.stream(await runner.resolve(make_request("Describe."))))
    assert len(engine.drafts) == 2 or outer == (Brief(sentences=1),)
    assert answer.finish.usage.prompt_tokens == 10
    assert runner.prior_usage.forward_passes + answer.finish.usage.forward_passes == engine.passes


async def test_example_of_the_documentation_generates_a_sentence_again() -> None:
    def write(prefix: str, ruled_out: tuple[str, ...], seed: int | None) -> str:
        return " A bird sings." if ruled_out else "There is a dog. A cat sits there. A kite flies."

    engine = ScriptedEngine(write, {})
    async with StrategyRunner([Brief(avoided=("cat", "fox"))], engine) as runner:
        answer = await collect_answer(runner.stream(await runner.resolve(make_request("Describe."))))
    assert answer.text == "There is a dog. A bird sings."
    assert [engine.decode(draft.answer_prefix) for draft in engine.drafts] == ["", "There is a dog."]
    assert engine.drafts[1].ruled_out == ("cat", "fox")
