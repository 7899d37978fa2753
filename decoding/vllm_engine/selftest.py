"""Before the server says that it is ready: is what runs in vLLM what was asked for, and does a gang keep step?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from decoding.ask import Ask, Picture, Prompt, Sampling
from decoding.errors import EngineFailed
from decoding.stack import collect

if TYPE_CHECKING:
    from decoding.vllm_engine.engine import VllmEngine

HOOKS = frozenset({"load_model", "_model_forward", "_sample", "sample_tokens", "_bookkeeping_sync"})
TOKENS = 3


def check(report: Mapping[str, Any]) -> None:
    """Raises:
    EngineFailed: a part of ours is not in place in vLLM's processes.
    """
    missing = HOOKS - set(report["worker"]["hooks"])
    if missing:
        raise EngineFailed(f"vLLM's model runner lacks the hooks {', '.join(sorted(missing))}.")
    if report["worker"]["runner"] != "v1":
        raise EngineFailed("vLLM runs another model runner than V1.")
    if not report["is_gang_scheduler"]:
        raise EngineFailed(f"vLLM schedules with {report['scheduler']}, which does not keep branches together.")
    if report["async_scheduling"]:
        raise EngineFailed("vLLM schedules asynchronously.")


async def run(engine: VllmEngine) -> None:
    """One tiny gang, with a picture and without: it must draw each of its tokens together.

    Raises:
        EngineFailed: it did not.
    """
    before = (await engine.report())["counters"]
    picture = Picture(Image.new("RGB", (64, 64)))
    ask = Ask(Prompt.of("Hello.", picture), Sampling(max_tokens=TOKENS, ignore_eos=True))
    if engine.settings.max_rows > 1:
        ask = ask.but(branches={"self/test": ask.prompt.without_pictures()})
    answer = await collect(engine.generate(ask))
    counters = (await engine.report())["counters"]
    together = counters["tokens"] - before["tokens"]
    if len(answer.tokens) != TOKENS or counters["violations"] or (ask.branches and together != TOKENS):
        raise EngineFailed("vLLM did not keep the two rows of the self-test in step.")
