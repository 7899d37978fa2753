"""Every model family that this engine serves gives the tokens of the transformers engine."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from decoding.engine import Engine
from decoding.errors import Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.vllm_engine.frontend.checkpoint import SERVED_FAMILIES, Checkpoint
from tests.decoding.families.checkpoints import CHECKPOINTS, write_checkpoint, write_for_vllm
from tests.decoding.families.prompts import PROMPTS
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.conftest import start_engine
from tests.decoding.vllm_engine.scenes import generate_all, get_token_ids

TOKENS = 20
STRATEGIES, SHOWN = ("vcd", "m3id", "vhr", "dola", "deco", "pai"), ("wide", "two")
CASES = [*(("plain", name) for name in PROMPTS), *product(STRATEGIES, SHOWN)]


@pytest.mark.parametrize("name", [name for name in SERVED_FAMILIES if name != "llava"])
async def test_family_equals_the_transformers_engine(name: str, tmp_path: Path) -> None:
    folder = write_for_vllm(tmp_path, name)
    hf_engine = HFEngine(HFSettings(str(folder), dtype="float32", device="cpu"))
    await hf_engine.start()
    expected = await generate_cases(hf_engine)
    await hf_engine.close()
    assert len({tuple(expected["plain", shown]) for shown in PROMPTS}) == len(PROMPTS), "images must matter"
    for strategy in STRATEGIES:
        assert any(expected[strategy, shown] != expected["plain", shown] for shown in SHOWN), f"{strategy} must matter"
    engine = await start_engine(model=str(folder), max_rows=8, context=512)
    try:
        assert await generate_cases(engine) == expected
        with pytest.raises(Unsupported, match="cannot run 'paint': it lacks vision_attention: vLLM's vision tower"):
            await generate_all(engine, [(build_stack("paint"), PROMPTS["wide"])], 1)
        assert (await engine.report())["counters"]["violations"] == 0
    finally:
        await engine.close()


async def generate_cases(engine: Engine) -> dict[tuple[str, str], list[int]]:
    requests = [(build_stack(strategy), PROMPTS[shown]) for strategy, shown in CASES]
    return dict(zip(CASES, map(get_token_ids, await generate_all(engine, requests, TOKENS)), strict=True))


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name not in SERVED_FAMILIES])
def test_other_families_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="--engine hf"):
        Checkpoint(str(write_checkpoint(name, tmp_path)), None)
