"""Hooks inside the model cost other requests nothing, and are rejected where the model lacks the layer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.taps import attention
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest
from decoding.strategies.attention.adaiat import AdaIAT
from decoding.strategy import AttentionKeys, Tensors
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies


@pytest.fixture
def tapped_layers(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the layers whose attention goes through the attention tap."""
    seen: list[int] = []
    rewrite_rows: Callable[..., Any] = attention.AttentionTap.rewrite_rows

    def record_layer(tap: attention.AttentionTap, layer: int, *others: Any) -> None:
        seen.append(layer)
        rewrite_rows(tap, layer, *others)

    monkeypatch.setattr(attention.AttentionTap, "rewrite_rows", record_layer)
    return seen


async def test_only_passes_with_an_edited_row_use_the_attention_tap(engine: HFEngine, tapped_layers: list[int]) -> None:
    for names in ("plain", "vcd", "vhr", "dola"):
        await run_strategies(engine, names, make_prompt(), exact_length(4))
    assert tapped_layers == []
    await run_strategies(engine, "pai", make_prompt(), exact_length(4))
    assert tapped_layers == [*range(engine.model.num_layers)] * 4


async def test_taps_are_removed_after_a_pass(engine: HFEngine) -> None:
    """Taps exist for the length of a pass."""
    await asyncio.gather(
        *(run_strategies(engine, names, make_prompt(), exact_length(4)) for names in ("dola", "deco", "pai"))
    )
    taps = [layer._forward_pre_hooks for layer in engine.model.decoder.layers]
    assert not any(taps)
    assert engine.model.decoder.config._attn_implementation == "sdpa"


async def test_missing_layer_is_rejected_by_name(engine: HFEngine) -> None:
    with pytest.raises(BadRequest, match="'dola' reads layer 6; this model allows at most 5") as refused:
        await run_strategies(engine, build_stack("dola", dola={"layers": [2, 6]}), make_prompt(), exact_length(4))
    assert refused.value.param == "decoding.dola"


async def test_named_layers_and_raw_states_change_the_tokens(engine: HFEngine) -> None:
    texts = {
        (await run_strategies(engine, build_stack("dola", dola=parameters), make_prompt(), exact_length(12)))[0].text
        for parameters in ({}, {"layers": [5]}, {"layers": [5], "normed": False})
    }
    assert len(texts) == 3


async def test_choices_use_the_hooks_inside_the_model(engine: HFEngine) -> None:
    """A request for scored texts is one pass over its prompt, with the hooks of any other pass."""

    async def score_texts(names: str, **parameters: Any) -> dict[str, float]:
        answer = await collect_answer(
            engine.generate(
                GenerateRequest(make_prompt(), stack=build_stack(names, **parameters), scored_texts=("Yes", "No"))
            )
        )
        return dict(answer.text_logprobs)

    plain, attentive, layered = [
        await score_texts("plain"),
        await score_texts("pai", pai={"gamma": 1.0}),
        await score_texts("dola"),
    ]
    assert plain != attentive
    assert plain != layered


async def test_padding_of_a_batch_is_not_visible(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: set[int] = set()
    own = AdaIAT.edit_attention_scores

    def record_lengths(strategy: AdaIAT, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.generated is not None and len(scores) == 2:  # a step of both rows
            lengths.update((keys.is_visible & ~keys.is_generated).sum(-1).tolist())
        return own(strategy, scores, keys, state)

    monkeypatch.setattr(AdaIAT, "edit_attention_scores", record_lengths)
    prompts = [make_prompt(text=text) for text in ("What?", "What? " * 20)]
    await asyncio.gather(*(run_strategies(engine, "adaiat", prompt, exact_length(6)) for prompt in prompts))
    assert lengths == {len(engine.encoder.encode(prompt)) for prompt in prompts}
