"""Every family that this engine takes says what it says on the transformers engine."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from decoding.engine import Engine
from decoding.errors import Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.vllm_engine.reader import FAMILIES, Reader
from tests.decoding.families.checkpoints import RECIPES, for_vllm
from tests.decoding.families.conversations import PROMPTS
from tests.decoding.hf_engine.asking import stack
from tests.decoding.vllm_engine.conftest import started
from tests.decoding.vllm_engine.scenes import answers, ids

TOKENS = 20
STRATEGIES, SHOWN = ("vcd", "m3id", "vhr"), ("wide", "two")
CASES = [*(("plain", name) for name in PROMPTS), *product(STRATEGIES, SHOWN)]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llava"])
async def test_answers_as_the_transformers_engine_does(name: str, tmp_path: Path) -> None:
    folder = for_vllm(tmp_path, name)
    hf = HFEngine(HFSettings(str(folder), dtype="float32", device="cpu"))
    await hf.start()
    expected = await said(hf)
    await hf.close()
    assert len({tuple(expected["plain", shown]) for shown in PROMPTS}) == len(PROMPTS), "pictures must matter"
    for strategy in STRATEGIES:
        assert any(expected[strategy, shown] != expected["plain", shown] for shown in SHOWN), f"{strategy} must matter"
    engine = await started(model=str(folder), max_rows=8, context=512)
    try:
        assert await said(engine) == expected
        assert (await engine.report())["counters"]["violations"] == 0
    finally:
        await engine.close()


async def said(engine: Engine) -> dict[tuple[str, str], list[int]]:
    asked = [(stack(strategy), PROMPTS[shown]) for strategy, shown in CASES]
    return dict(zip(CASES, map(ids, await answers(engine, asked, TOKENS)), strict=True))


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in FAMILIES])
def test_the_others_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="--engine hf"):
        Reader(str(for_vllm(tmp_path, name)), None)
