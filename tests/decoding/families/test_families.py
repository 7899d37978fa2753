"""The engine's tokens of every family, alone and in a batch, against a full recomputation."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from decoding.errors import Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.prefill import group_prompts
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal.model_families import FAMILIES
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.registry import build
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from tests.decoding.families.checkpoints import CHECKPOINTS
from tests.decoding.families.prompts import PROMPTS
from tests.decoding.families.reference import FamilyReference

STEPS = 12
CASES = [
    *(("plain", name) for name in PROMPTS),
    *((strategy, name) for strategy in ("vcd", "vhr") for name in ("wide", "two")),
    *((strategy, "wide") for strategy in ("pai", "dola")),
]
OF_ALL_SHAPES = ("idefics2", "lighton_ocr")  # families whose pixels have the shapes of the pictures
TokensByCase = dict[tuple[str, str], list[int]]


@dataclass
class Family:
    name: str
    naive: TokensByCase
    alone: TokensByCase
    together: TokensByCase
    closest: float  # gap between the two best scores, over all steps of `naive`
    capabilities: frozenset[str]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def family(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Family:
    folder = checkpoint(request.param)
    cases = [case for case in CASES if can_read(request.param, PROMPTS[case[1]])]
    naive = FamilyReference(folder)
    expected = {(strategy, name): getattr(naive, strategy)(PROMPTS[name], STEPS) for strategy, name in cases}
    alone, together, capabilities = asyncio.run(on_engine(folder, cases))
    return Family(request.param, expected, alone, together, naive.closest, capabilities)


def can_read(family: str, prompt: Prompt) -> bool:
    most = FAMILIES[family].max_images
    return most is None or len(prompt.images) <= most


async def on_engine(folder: Path, cases: list[tuple[str, str]]) -> tuple[TokensByCase, TokensByCase, frozenset[str]]:
    engine = HFEngine(HFSettings(str(folder), dtype="float32", device="cpu"))
    await engine.start()
    try:
        alone = {case: await generate_text(engine, *case) for case in cases}
        together = await asyncio.gather(*(generate_text(engine, *case) for case in cases))
    finally:
        await engine.close()
    return alone, dict(zip(cases, together, strict=True)), frozenset(engine.capabilities)


async def generate_text(engine: HFEngine, strategy: str, name: str) -> list[int]:
    request = GenerateRequest(PROMPTS[name], SamplingParams(max_tokens=STEPS, ignore_eos=True))
    async with StrategyRunner(build(strategy, {}), engine) as run:
        answer = await collect_answer(run.stream(await run.resolve(request)))
    return [token.id for token in answer.tokens]


def test_every_family_has_a_checkpoint() -> None:
    assert set(CHECKPOINTS) == set(FAMILIES)


def test_single_request_equals_full_recomputation(family: Family) -> None:
    assert family.alone == family.naive


def test_batch_equals_full_recomputation(family: Family) -> None:
    assert family.together == family.naive


def test_capabilities_are_those_of_the_table(family: Family) -> None:
    row = FAMILIES[family.name]
    assert ("vision_attention" in family.capabilities) == (row.vision_tower_path is not None)
    assert ("keep_image_tokens" in family.capabilities) == row.supports_token_pruning


def test_score_gaps_exceed_rounding(family: Family) -> None:
    """Otherwise the two tests above could pass or fail by chance."""
    assert family.closest > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_prompts_of_all_lengths_share_a_pass(name: str, checkpoint: Callable[[str], Path]) -> None:
    """In the engine the joining prompts differ from run to run. Here all join, then decode two tokens together."""
    model, naive = Model(HFSettings(str(checkpoint(name)), device="cpu")), FamilyReference(checkpoint(name))
    prompts = [prompt for prompt in PROMPTS.values() if can_read(name, prompt)]
    encoded = [model.encoder.encode(prompt) for prompt in prompts]
    groups = group_prompts(encoded)
    assert len(groups) == (len({inputs.pixel_shape for inputs in encoded} - {None}) if name in OF_ALL_SHAPES else 1)

    ready: dict[int, PrefillOutput] = {}
    for group in groups:
        ready |= zip(group, model.prefill([encoded[number] for number in group]), strict=True)
    cache = model.create_cache()
    for row in range(len(prompts)):
        cache.add_row(ready[row].key_values)
    first = torch.stack([ready[row].logits for row in range(len(prompts))]).argmax(-1)
    positions = [ready[row].next_position for row in range(len(prompts))]
    second = model.decode(first, positions, cache, None)
    third = model.decode(second.argmax(-1), [position + 1 for position in positions], cache, None)

    for row, prompt in enumerate(prompts):
        inputs, tokens = naive.encode(prompt), [int(first[row]), int(second[row].argmax())]
        for logits, seen in ((ready[row].logits, []), (second[row], tokens[:1]), (third[row], tokens)):
            torch.testing.assert_close(logits, naive.logits(inputs, seen), atol=1e-3, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_extend_runs_several_tokens_in_one_pass(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Prompts of all lengths with parts of an answer continue by one, three and five tokens."""
    model, naive = Model(HFSettings(str(checkpoint(name)), device="cpu")), FamilyReference(checkpoint(name))
    prompts = [prompt for prompt in PROMPTS.values() if can_read(name, prompt)]
    words = model.encoder.tokenizer("a cat on the table and a dog", add_special_tokens=False)["input_ids"][:8]
    read_counts = [row % 3 for row in range(len(prompts))]
    read = [
        model.prefill([model.encoder.encode(prompt).with_tokens(words[:n])])[0]
        for prompt, n in zip(prompts, read_counts, strict=True)
    ]
    for more in ([1 + 2 * (row % 3) for row in range(len(prompts))], [1] * len(prompts)):
        # A second continuation, which shares the row, does not change the first.
        extended = model.extend(
            read, [[words[n : n + m], words[: m + 1]] for n, m in zip(read_counts, more, strict=True)]
        )
        for (_, other), prompt, n, m in zip(extended, prompts, read_counts, more, strict=True):
            seen = [*words[:n], *words[: m + 1]]
            torch.testing.assert_close(other.logits, naive.logits(naive.encode(prompt), seen), atol=1e-3, rtol=0)
        read = [one for one, _ in extended]
        read_counts = [n + m for n, m in zip(read_counts, more, strict=True)]
        for one, prompt, n in zip(read, prompts, read_counts, strict=True):
            torch.testing.assert_close(one.logits, naive.logits(naive.encode(prompt), words[:n]), atol=1e-3, rtol=0)


async def test_vision_attention_requires_a_class_token(checkpoint: Callable[[str], Path]) -> None:
    """PAINT needs a class token, and tokens that are patches."""
    engine = HFEngine(HFSettings(str(checkpoint("gemma3")), dtype="float32", device="cpu"))
    await engine.start()
    try:
        assert not {"vision_attention", "keep_image_tokens"} & engine.capabilities
        with pytest.raises(
            Unsupported,
            match="'sid': it lacks keep_image_tokens: the transformers engine drops image tokens inside LLaVA",
        ):
            await generate_text(engine, "sid", "one")
        with pytest.raises(
            Unsupported,
            match="'paint': it lacks vision_attention: it needs a vision tower with a class token",
        ):
            await generate_text(engine, "paint", "one")
    finally:
        await engine.close()


def test_images_and_strategies_change_the_tokens(family: Family) -> None:
    """Otherwise the tests above could pass without image inputs."""
    first = [tuple(tokens) for tokens in family.naive.values()]
    assert len(set(first)) == len(first)
