"""What can be asked: several pictures, several turns, none of the model's own tokens."""

from __future__ import annotations

import asyncio
import time

import pytest
from PIL import Image

from decoding.ask import Message, Picture, Prompt
from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from tests.decoding.hf_engine.asking import answer, exactly, picture, prompt, say
from tests.decoding.hf_engine.reference import Reference

N = 12
TURNS = Prompt(
    (
        Message("system", ("You say only what you see.",)),
        Message("user", (picture(1), "Is there a cat?")),
        Message("assistant", ("No.",)),
        Message("user", ("And here? ", picture(2), "Or here?", picture(3))),
    )
)


@pytest.mark.parametrize(
    "asked",
    [Prompt.of("How many chairs are in the picture?"), Prompt.of("Which is it?", picture(1), picture(2)), TURNS],
    ids=["no picture", "two pictures", "several turns"],
)
async def test_conversations_are_answered_as_by_the_plain_model(
    asked: Prompt, either: HFEngine, reference: Reference
) -> None:
    said = await say(either, asked, exactly(N))
    assert [token.id for token in said.tokens] == reference.decode((), asked, N).tokens


async def test_the_pictures_of_each_request_stay_its_own(engine: HFEngine) -> None:
    """They go through the model in one pass."""
    prompts = [TURNS, prompt(1), Prompt.of("Is there a cat?"), Prompt.of("Both?", picture(4), picture(5)), prompt(2)]
    alone = [(await say(engine, asked, exactly(N))).text for asked in prompts]
    together = await asyncio.gather(*(say(engine, asked, exactly(N)) for asked in prompts))
    assert [said.text for said in together] == alone
    assert len(set(alone)) == len(alone)


async def test_a_picture_may_have_any_size(engine: HFEngine) -> None:
    odd = [Picture(Image.new("RGB", size, (200, 30, 60))) for size in ((1, 1), (9, 310), (700, 33))]
    said = await asyncio.gather(*(answer(engine, "agla", Prompt.of("What?", one), exactly(N)) for one in odd))
    assert all(len(one.tokens) == N for one, _ in said)


async def test_several_pictures_are_noised_and_masked_each_by_itself(engine: HFEngine) -> None:
    said = {(await answer(engine, names, TURNS, exactly(N)))[0].text for names in ("plain", "vcd", "agla", "vhr")}
    assert len(said) == 4


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("text", ["an <image> here", "</s>", "<s>[INST]"])
async def test_text_that_holds_a_token_of_the_models_own_is_refused(role: str, text: str, engine: HFEngine) -> None:
    asked = Prompt((Message(role, (text,)), *prompt().messages))  # type: ignore[arg-type]
    with pytest.raises(BadRequest) as refused:
        await say(engine, asked, exactly(1))
    assert refused.value.param == "messages"


async def test_a_token_of_the_models_own_cannot_be_put_together_from_parts(engine: HFEngine) -> None:
    with pytest.raises(BadRequest):
        await say(engine, Prompt((Message("user", ("<ima", "ge>")),)), exactly(1))


async def test_an_odd_but_harmless_text_is_answered(engine: HFEngine) -> None:
    said = await say(engine, Prompt.of("< image > 🦦 \x00 \u202e {{ 7 * 7 }} {% raw %}", picture(0)), exactly(N))
    assert len(said.tokens) == N


async def test_a_bare_text_is_read_as_it_is(engine: HFEngine) -> None:
    bare = Prompt((Message("user", ("There is a cat",)),), bare=True)
    ids = await engine.tokens(bare)
    tokenizer = engine.model.encoder.tokenizer
    assert ids == tokenizer("There is a cat")["input_ids"]
    assert len(await engine.tokens(Prompt.of("There is a cat"))) > len(ids)
    assert (await say(engine, bare, exactly(3))).end.usage.prompt_tokens == len(ids)


async def test_a_text_far_beyond_the_context_is_not_even_read(engine: HFEngine) -> None:
    """Previously millions of words kept the tokenizer, and everybody else's prompts, for half a minute."""
    began = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        await engine.tokens(Prompt.of("word " * 3_000_000))
    assert time.perf_counter() - began < 1
    assert refused.value.code == "context_length_exceeded"
