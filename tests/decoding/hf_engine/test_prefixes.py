"""What is kept of a picture is of use to the next question about it, and changes no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from decoding.answer import Answer
from decoding.encoder import Encoded
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import Model, Prefilled, Read
from decoding.hf_engine.prefixes import Prefixes, size
from decoding.hf_engine.request import Request
from decoding.prompt import Noise, Prompt
from tests.decoding.hf_engine.asking import answer, exactly, held, picture, prompt, say, until
from tests.decoding.hf_engine.test_exactness import STACKS

ASKED = prompt(seed=1)
SIBLING = prompt(seed=1, text="Is there a dog in the image?")
LENGTH = 12


async def ask(engine: HFEngine, names: str, asked: Prompt) -> Answer:
    said, _ = await answer(engine, STACKS[names], asked, exactly(LENGTH, top_logprobs=0))
    return said


@pytest.mark.parametrize("names", STACKS)
async def test_no_answer_depends_on_what_was_asked_before(names: str, engine: HFEngine) -> None:
    cold = []
    for asked in (ASKED, SIBLING):
        engine.worker.prefixes.clear()
        cold.append(await ask(engine, names, asked))
    await ask(engine, "plain", ASKED)
    for asked, before in zip((ASKED, SIBLING), cold, strict=True):
        after = await ask(engine, names, asked)
        assert [token.id for token in after.tokens] == [token.id for token in before.tokens]
        for one, other in zip(after.tokens, before.tokens, strict=True):
            assert one.chosen is not None
            assert other.chosen is not None
            assert one.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-4)
        assert after.end.usage.forward_passes == before.end.usage.forward_passes


async def test_a_prefix_of_other_insides_is_noticed(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison above would prove nothing: here a row whose attention is edited takes a plain one's."""
    engine.worker.prefixes.clear()
    names = "pai without guidance"
    right = await ask(engine, names, ASKED)
    monkeypatch.setattr(Request, "is_plain", lambda *_: True)
    await ask(engine, "plain", SIBLING)
    wrong = await ask(engine, names, ASKED)
    engine.worker.prefixes.clear()
    assert [token.chosen for token in wrong.tokens] != [token.chosen for token in right.tokens]


async def test_questions_that_come_together_read_their_picture_once(
    engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Encoded] = []
    left: list[int] = []
    prefill, extend = Model.prefill, Model.extend

    def counted(model: Model, prompts: Sequence[Encoded], *rest: object) -> list[Prefilled]:
        whole.extend(prompts)
        return prefill(model, prompts, *rest)  # type: ignore[arg-type]

    def continued(model: Model, caches: Sequence[Read], tokens: Sequence[Sequence[int]]) -> list[Prefilled]:
        left.extend(map(len, tokens))
        return extend(model, caches, tokens)

    monkeypatch.setattr(Model, "prefill", counted)
    monkeypatch.setattr(Model, "extend", continued)
    engine.worker.prefixes.clear()
    before = await engine.counters()
    asked = [prompt(seed=5, text=f"Is there a {name} in the image?") for name in ("cat", "dog", "cup", "bus")]
    async with held(engine):
        tasks = [asyncio.create_task(say(engine, one, exactly(1))) for one in asked]
        await until(lambda: engine.worker._inbox.qsize() == len(asked))
    answers = await asyncio.gather(*tasks)
    assert [(len(whole), len(left))] == [(1, 3)]
    await say(engine, asked[0], exactly(1))
    assert (len(whole), len(left)) == (1, 4)
    prompts = [one.end.usage.prompt_tokens for one in answers]
    assert max(left) < min(prompts)
    now = await engine.counters()
    assert now["prefix_cache_queries"] - before["prefix_cache_queries"] == sum(prompts) + prompts[0]
    assert 0 < now["prefix_cache_hits"] - before["prefix_cache_hits"] < prompts[0]


def test_what_is_kept_has_a_bound_and_is_told_apart(engine: HFEngine) -> None:
    model = engine.model
    noisy = Prompt.of("Hello.", picture(0).noised(Noise(500, 1)))
    asked = [prompt(0, "Hello."), prompt(0, "Hello there."), prompt(1, "Hello."), noisy]
    encoded = [model.encoder.encode(one) for one in asked]
    prefixes = Prefixes(model, 1 << 30)
    beginnings = [prefixes.beginning(*one) for one in zip(asked, encoded, strict=True)]
    assert beginnings[0] == beginnings[1]
    assert len(set(beginnings)) == 3
    text = asked[0].without_pictures()
    assert prefixes.beginning(text, model.encoder.encode(text)) is None
    assert Prefixes(model, 0).beginning(asked[0], encoded[0]) is None

    (read,) = model.prefill(encoded[:1])
    few = Prefixes(model, 2 * size(read))
    for one in (beginnings[0], beginnings[2], beginnings[0], beginnings[3]):
        assert one is not None
        few.find(one, 1)
        few.keep(one, read)
    assert few.bytes == 2 * size(read)
    assert [few.find(one, 1) is not None for one in beginnings if one] == [True, True, False, True]
