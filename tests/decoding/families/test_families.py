"""Every family says on the engine, alone and in a batch, what its own forward says when all is computed anew."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from decoding.ask import Ask, Prompt, Sampling
from decoding.errors import Unsupported
from decoding.families import FAMILIES
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.grouping import fits
from decoding.hf_engine.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.registry import build
from decoding.stack import Run, collect
from tests.decoding.families.checkpoints import RECIPES
from tests.decoding.families.conversations import PROMPTS
from tests.decoding.families.reference import Naive

STEPS = 18
CASES = [
    *(("plain", name) for name in PROMPTS),
    *((strategy, name) for strategy in ("vcd", "vhr") for name in ("wide", "two")),
    *((strategy, "wide") for strategy in ("pai", "dola")),
]
Said = dict[tuple[str, str], list[int]]


@dataclass
class Family:
    name: str
    naive: Said
    alone: Said
    together: Said
    closest: float  # gap between the two best scores, over all steps of `naive`


@pytest.fixture(scope="module", params=RECIPES)
def family(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Family:
    folder = checkpoint(request.param)
    cases = [case for case in CASES if can_read(request.param, PROMPTS[case[1]])]
    naive = Naive(folder)
    expected = {(strategy, name): getattr(naive, strategy)(PROMPTS[name], STEPS) for strategy, name in cases}
    alone, together = asyncio.run(on_engine(folder, cases))
    return Family(request.param, expected, alone, together, naive.closest)


def can_read(family: str, prompt: Prompt) -> bool:
    most = FAMILIES[family].most_pictures
    return most is None or len(prompt.pictures) <= most


async def on_engine(folder: Path, cases: list[tuple[str, str]]) -> tuple[Said, Said]:
    engine = HFEngine(HFSettings(str(folder), dtype="float32", device="cpu"))
    await engine.start()
    try:
        alone = {case: await say(engine, *case) for case in cases}
        together = await asyncio.gather(*(say(engine, *case) for case in cases))
    finally:
        await engine.close()
    return alone, dict(zip(cases, together, strict=True))


async def say(engine: HFEngine, strategy: str, name: str) -> list[int]:
    ask = Ask(PROMPTS[name], Sampling(max_tokens=STEPS, ignore_eos=True))
    async with Run(build(strategy, {}), engine) as run:
        answer = await collect(run.stream(await run.resolve(ask)))
    return [token.id for token in answer.tokens]


def test_every_family_has_a_recipe() -> None:
    assert set(RECIPES) == set(FAMILIES)


def test_alone_it_equals_a_full_recomputation(family: Family) -> None:
    assert family.alone == family.naive


def test_in_a_batch_it_says_the_same(family: Family) -> None:
    assert family.together == family.naive


def test_rounding_decides_nothing(family: Family) -> None:
    """Otherwise the two tests above could pass or fail by chance."""
    assert family.closest > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_prompts_share_a_pass(name: str, checkpoint: Callable[[str], Path]) -> None:
    """What joins the engine at once differs from run to run: here all prompts do, then decode two tokens together."""
    model, naive = Model(HFSettings(str(checkpoint(name)), device="cpu")), Naive(checkpoint(name))
    prompts = [prompt for prompt in PROMPTS.values() if can_read(name, prompt)]
    encoded = [model.encoder.encode(prompt) for prompt in prompts]
    assert fits(encoded[0], encoded[1:])

    ready = model.prefill(encoded)
    cache = model.new_cache()
    for one in ready:
        cache.join(one.pairs)
    said = torch.stack([one.logits for one in ready]).argmax(-1)
    second = model.decode(said, [one.position for one in ready], cache, None)
    third = model.decode(second.argmax(-1), [one.position + 1 for one in ready], cache, None)

    for row, prompt in enumerate(prompts):
        inputs, tokens = naive.read(prompt), [int(said[row]), int(second[row].argmax())]
        for logits, seen in ((ready[row].logits, []), (second[row], tokens[:1]), (third[row], tokens)):
            torch.testing.assert_close(logits, naive.logits(inputs, seen), atol=1e-3, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", RECIPES)
def test_a_row_that_slept_reads_several_tokens_in_one_pass(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Prompts of all lengths, with as much of an answer behind them as each, go on by one token, by three, by five."""
    model, naive = Model(HFSettings(str(checkpoint(name)), device="cpu")), Naive(checkpoint(name))
    prompts = [prompt for prompt in PROMPTS.values() if can_read(name, prompt)]
    words = model.encoder.tokenizer("a cat on the table and a dog", add_special_tokens=False)["input_ids"][:8]
    heard = [row % 3 for row in range(len(prompts))]
    read = model.prefill(
        [model.encoder.encode(prompt).followed_by(words[:n]) for prompt, n in zip(prompts, heard, strict=True)]
    )
    for more in ([1 + 2 * (row % 3) for row in range(len(prompts))], [1] * len(prompts)):
        read = model.extend(read, [words[n : n + m] for n, m in zip(heard, more, strict=True)])
        heard = [n + m for n, m in zip(heard, more, strict=True)]
        for one, prompt, n in zip(read, prompts, heard, strict=True):
            torch.testing.assert_close(one.logits, naive.logits(naive.read(prompt), words[:n]), atol=1e-3, rtol=0)


async def test_what_a_vision_tower_cannot_tell_is_refused(checkpoint: Callable[[str], Path]) -> None:
    """No class token, or tokens that are no patches: PAINT has nothing to go by."""
    engine = HFEngine(HFSettings(str(checkpoint("gemma3")), dtype="float32", device="cpu"))
    await engine.start()
    try:
        assert not {"vision", "narrow"} & engine.capabilities
        with pytest.raises(Unsupported, match="'sid': it lacks narrow: tokens can be dropped inside LLaVA"):
            await say(engine, "sid", "one")
        with pytest.raises(Unsupported, match="'paint' needs a vision tower with a class token"):
            await say(engine, "paint", "one")
    finally:
        await engine.close()


def test_pictures_and_strategies_change_what_is_said(family: Family) -> None:
    """Otherwise the tests above could pass with pictures that never arrive."""
    said = [tuple(tokens) for tokens in family.naive.values()]
    assert len(set(said)) == len(said)
