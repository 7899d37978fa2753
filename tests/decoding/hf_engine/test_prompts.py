"""Prompts with several images and turns, and texts that are rejected."""

from __future__ import annotations

import asyncio
import time

import pytest
from PIL import Image

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.requests import ImageInput, Message, Prompt
from tests.decoding.hf_engine.harness import exact_length, generate, make_image, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference

N = 12
TURNS = Prompt(
    (
        Message("system", ("You say only what you see.",)),
        Message("user", (make_image(1), "Is there a cat?")),
        Message("assistant", ("No.",)),
        Message("user", ("And here? ", make_image(2), "Or here?", make_image(3))),
    )
)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt.from_text("How many chairs are in the picture?"),
        Prompt.from_text("Which is it?", make_image(1), make_image(2)),
        TURNS,
    ],
    ids=["no image", "two images", "several turns"],
)
async def test_conversations_equal_the_reference(prompt: Prompt, either: HFEngine, reference: Reference) -> None:
    answer = await generate(either, prompt, exact_length(N))
    assert [token.id for token in answer.tokens] == reference.decode((), prompt, N).tokens


async def test_images_of_concurrent_requests_are_not_mixed(engine: HFEngine) -> None:
    """The prompts share a pass."""
    prompts = [
        TURNS,
        make_prompt(1),
        Prompt.from_text("Is there a cat?"),
        Prompt.from_text("Both?", make_image(4), make_image(5)),
        make_prompt(2),
    ]
    alone = [(await generate(engine, prompt, exact_length(N))).text for prompt in prompts]
    together = await asyncio.gather(*(generate(engine, prompt, exact_length(N)) for prompt in prompts))
    assert [answer.text for answer in together] == alone
    assert len(set(alone)) == len(alone)


async def test_images_of_any_size_are_accepted(engine: HFEngine) -> None:
    odd = [ImageInput(Image.new("RGB", size, (200, 30, 60))) for size in ((1, 1), (9, 310), (700, 33))]
    results = await asyncio.gather(
        *(run_strategies(engine, "agla", Prompt.from_text("What?", one), exact_length(N)) for one in odd)
    )
    assert all(len(one.tokens) == N for one, _ in results)


async def test_strategies_accept_several_images(engine: HFEngine) -> None:
    texts = {
        (await run_strategies(engine, names, TURNS, exact_length(N)))[0].text
        for names in ("plain", "vcd", "agla", "vhr")
    }
    assert len(texts) == 4


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("text", ["an <image> here", "</s>", "<s>[INST]"])
async def test_special_token_in_text_is_rejected(role: str, text: str, engine: HFEngine) -> None:
    prompt = Prompt((Message(role, (text,)), *make_prompt().messages))  # type: ignore[arg-type]
    with pytest.raises(BadRequest) as refused:
        await generate(engine, prompt, exact_length(1))
    assert refused.value.param == "messages"


async def test_special_token_across_parts_is_rejected(engine: HFEngine) -> None:
    with pytest.raises(BadRequest):
        await generate(engine, Prompt((Message("user", ("<ima", "ge>")),)), exact_length(1))


async def test_unusual_text_is_answered(engine: HFEngine) -> None:
    answer = await generate(
        engine, Prompt.from_text("< image > 🦦 \x00 \u202e {{ 7 * 7 }} {% raw %}", make_image(0)), exact_length(N)
    )
    assert len(answer.tokens) == N


async def test_raw_text_is_encoded_without_a_template(engine: HFEngine) -> None:
    bare = Prompt((Message("user", ("There is a cat",)),), raw_text=True)
    ids = await engine.tokenize(bare)
    tokenizer = engine.model.encoder.tokenizer
    assert ids == tokenizer("There is a cat")["input_ids"]
    assert len(await engine.tokenize(Prompt.from_text("There is a cat"))) > len(ids)
    assert (await generate(engine, bare, exact_length(3))).finish.usage.prompt_tokens == len(ids)


@pytest.mark.flaky(reruns=2)  # a busy machine may delay it
async def test_text_far_beyond_the_context_is_not_tokenized(engine: HFEngine) -> None:
    """Previously millions of words blocked the tokenizer, and all other prompts, for half a minute."""
    began = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        await engine.tokenize(Prompt.from_text("word " * 3_000_000))
    assert time.perf_counter() - began < 1
    assert refused.value.code == "context_length_exceeded"
