"""Stop strings, through the engine."""

from __future__ import annotations

import pytest

from decoding.ask import Sampling
from decoding.hf_engine.engine import HFEngine
from tests.decoding.hf_engine.asking import exactly, prompt, say


async def test_an_answer_stops_before_a_stop_string_that_lies_across_tokens(engine: HFEngine) -> None:
    full = await say(engine, prompt(), exactly(30))
    for at in (0, 5, len(full.text) // 2, len(full.text) - 4):
        stop = full.text[at : at + 4]
        said = await say(engine, prompt(), exactly(30, stop=("never said", stop)))
        assert said.text == full.text[: full.text.index(stop)]
        assert said.end.reason == "stop"
        assert said.end.usage.completion_tokens == len(said.tokens) <= 30


async def test_what_was_held_back_comes_with_the_last_token(engine: HFEngine) -> None:
    full = await say(engine, prompt(), exactly(12))
    said = await say(engine, prompt(), exactly(12, stop=(full.text[-2:] + "and more",)))
    assert said.text == full.text
    assert said.end.reason == "length"


@pytest.mark.parametrize("names", ["some text", ""])
async def test_a_stop_string_that_never_comes_changes_nothing(names: str, engine: HFEngine) -> None:
    stop = (names,) if names else ()
    said = await say(engine, prompt(), Sampling(max_tokens=12, ignore_eos=True, stop=stop))
    assert said.text == (await say(engine, prompt(), exactly(12))).text


async def test_a_stop_string_ends_no_answer_before_its_least_length(engine: HFEngine) -> None:
    full = await say(engine, prompt(), exactly(30))
    early = next(token.text for token in full.tokens if token.text)
    said = await say(engine, prompt(), exactly(30, stop=(early,), min_tokens=30))
    assert (said.text, said.end.reason) == (full.text, "length")
