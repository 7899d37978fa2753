"""Every family that this engine takes says what it says on the transformers engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoding.errors import Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.vllm_engine.reader import FAMILIES, Reader
from tests.decoding.families.checkpoints import RECIPES, for_vllm
from tests.decoding.families.conversations import PROMPTS
from tests.decoding.hf_engine.asking import stack
from tests.decoding.vllm_engine.conftest import started
from tests.decoding.vllm_engine.scenes import answers, ids

TOKENS = 12
CASES = [
    *((stack("plain"), prompt) for prompt in PROMPTS.values()),
    *((stack(names), PROMPTS[name]) for names in ("vcd", "m3id", "vhr") for name in ("wide", "two")),
]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llava"])
async def test_answers_as_the_transformers_engine_does(name: str, tmp_path: Path) -> None:
    folder = for_vllm(tmp_path, name)
    hf = HFEngine(HFSettings(str(folder), dtype="float32", device="cpu"))
    await hf.start()
    expected = [ids(one) for one in await answers(hf, CASES, TOKENS)]
    await hf.close()
    assert len({tuple(one) for one in expected}) == len(CASES), "pictures and strategies must change what is said"
    engine = await started(model=str(folder), max_rows=8, context=512)
    try:
        assert [ids(one) for one in await answers(engine, CASES, TOKENS)] == expected
        assert (await engine.report())["counters"]["violations"] == 0
    finally:
        await engine.close()


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in FAMILIES])
def test_the_others_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="--engine hf"):
        Reader(str(for_vllm(tmp_path, name)), None)
