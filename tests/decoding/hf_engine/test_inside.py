"""What strategies do inside the model costs nobody else anything, and is refused where there is no such inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from decoding.ask import Ask
from decoding.errors import BadRequest
from decoding.hf_engine import attention
from decoding.hf_engine.engine import HFEngine
from decoding.stack import collect
from tests.decoding.hf_engine.asking import answer, exactly, prompt, stack


@pytest.fixture
def passes(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of layers' attentions that went through ours, one more for each."""
    seen: list[int] = []
    own: Callable[..., Any] = attention.AttentionTap.look

    def counted(tap: attention.AttentionTap, layer: int, *others: Any) -> None:
        seen.append(layer)
        own(tap, layer, *others)

    monkeypatch.setattr(attention.AttentionTap, "look", counted)
    return seen


async def test_only_passes_with_an_edited_row_leave_the_models_own_attention(
    engine: HFEngine, passes: list[int]
) -> None:
    for names in ("plain", "vcd", "vhr", "dola"):
        await answer(engine, names, prompt(), exactly(4))
    assert passes == []
    await answer(engine, "pai", prompt(), exactly(4))
    assert passes == [*range(engine.model.layers)] * 4


async def test_nobody_listens_when_nobody_asked(engine: HFEngine) -> None:
    """Hooks are there for the length of a pass."""
    await asyncio.gather(*(answer(engine, names, prompt(), exactly(4)) for names in ("dola", "deco", "pai")))
    hooks = [layer._forward_pre_hooks for layer in engine.model.decoder.layers]
    assert not any(hooks)
    assert engine.model.decoder.config._attn_implementation == "sdpa"


async def test_a_layer_that_the_model_lacks_is_refused_by_name(engine: HFEngine) -> None:
    with pytest.raises(BadRequest, match="'dola' listens after layer 6; the last before the end is 5") as refused:
        await answer(engine, stack("dola", dola={"layers": [2, 6]}), prompt(), exactly(4))
    assert refused.value.param == "decoding.dola"


async def test_layers_by_name_and_raw_states_are_heard(engine: HFEngine) -> None:
    said = {
        (await answer(engine, stack("dola", dola=parameters), prompt(), exactly(12)))[0].text
        for parameters in ({}, {"layers": [5]}, {"layers": [5], "normed": False})
    }
    assert len(said) == 3


async def test_a_strategy_inside_weighs_choices_too(engine: HFEngine) -> None:
    """A question with fixed answers is one pass over its prompt, edited like any other."""

    async def weighed(names: str, **parameters: Any) -> dict[str, float]:
        said = await collect(engine.generate(Ask(prompt(), stack=stack(names, **parameters), choices=("Yes", "No"))))
        return dict(said.choices)

    plain, attentive, layered = [
        await weighed("plain"),
        await weighed("pai", pai={"gamma": 1.0}),
        await weighed("dola"),
    ]
    assert plain != attentive
    assert plain != layered
