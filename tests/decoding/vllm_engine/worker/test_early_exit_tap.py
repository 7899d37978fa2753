"""The tap on the decoder's layers, on a toy decoder. No vLLM is needed."""

from __future__ import annotations

import pytest
import torch

from decoding.tensor_hooks import EarlyExits
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker import early_exit_tap
from decoding.vllm_engine.worker.early_exit_tap import find_decoder
from tests.decoding.vllm_engine.worker.harness import (
    DOLA,
    VCD,
    WIDTH,
    ToyDecoder,
    ToyLayer,
    ToyModel,
    build_step,
    is_toy_attention,
    sum_layers,
    tap_decoder,
)


@torch.inference_mode()
@pytest.mark.parametrize("normed", [True, False])
def test_logits_are_those_after_the_layers_at_the_newest_token(normed: bool) -> None:
    decoder = ToyDecoder()
    tap, hidden = tap_decoder(decoder), torch.randn(9, WIDTH)
    step = build_step(None, DOLA, VCD, DOLA, lengths=[3, 2, 1, 3])
    tap.before_forward(step, {})
    assert not tap.is_idle
    decoder(hidden)
    tap.after_forward(step, {})
    exits = {1: {"dola": EarlyExits((0, 2), normed)}, 3: {"dola": EarlyExits((1,), normed), "deco": EarlyExits((3,))}}
    early_logits = tap.compute_logits(exits)
    for row, last in ((1, 4), (3, 8)):
        for name, own in exits[row].items():
            states = torch.stack([sum_layers(decoder, hidden, depth)[last] for depth in own.layers])
            expected = decoder.head(decoder.norm(states) if own.normed else states)
            torch.testing.assert_close(early_logits[row][name], expected)
    assert {row: set(own) for row, own in early_logits.items()} == {1: {"dola"}, 3: {"dola", "deco"}}


def test_tap_is_idle_where_no_strategy_reads_a_row() -> None:
    """Branches and other strategies read none, and a row without a new token has no newest one."""
    decoder = ToyDecoder()
    tap = tap_decoder(decoder)
    for step in (
        build_step(VCD, None, lengths=[2, 2]),
        build_step(DOLA, None, lengths=[2, 2], is_sampling=[False, True]),
        build_step(Member("dola", "vcd/noisy", 2), None, lengths=[2, 2]),
    ):
        tap.before_forward(step, {})
        assert tap.is_idle
        decoder(torch.randn(4, WIDTH))
        tap.after_forward(step, {})
        assert not tap.buffers.states.any()


def test_steps_without_a_gang_refer_to_tokens_that_they_have() -> None:
    """Such a step calls no method of the tap. Compiled code reads the buffer all the same."""
    tap = tap_decoder(ToyDecoder())
    step = build_step(None, DOLA, lengths=[8, 1])
    for _ in range(2):  # from the second time on the layout is known
        tap.before_forward(step, {})
        assert tap.buffers.last_tokens.tolist() == [0, 8, 0, 0, 0, 0]
        tap.after_forward(step, {})
        assert tap.is_idle
        assert not tap.buffers.last_tokens.any()


@torch.inference_mode()
def test_compiled_layers_fill_the_buffers() -> None:
    """The code is compiled while the tap is idle, as at the start of vLLM, and serves steps of other lengths."""
    decoder = ToyDecoder()
    tap = tap_decoder(decoder)
    compiled = torch.compile(decoder, backend="aot_eager", dynamic=True, fullgraph=True)
    compiled(torch.randn(5, WIDTH))
    for lengths in ([3, 4], [1, 1], [2, 1]):
        hidden, step = torch.randn(sum(lengths), WIDTH), build_step(DOLA, DOLA, lengths=lengths)
        tap.before_forward(step, {})
        compiled(hidden)
        tap.after_forward(step, {})
        early_logits = tap.compute_logits({row: {"dola": EarlyExits((2,), False)} for row in range(2)})
        for row, last in enumerate((lengths[0] - 1, sum(lengths) - 1)):
            expected = decoder.head(sum_layers(decoder, hidden, 2)[last])
            torch.testing.assert_close(early_logits[row]["dola"][0], expected)


def test_decoder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_exit_tap, "has_attention", is_toy_attention)
    monkeypatch.setattr(early_exit_tap, "TAPPED_LAYERS", {f"{ToyLayer.__module__}.ToyLayer.forward"})
    model = ToyModel()
    assert find_decoder(model) == (model.decoder, model.lm_head)
    model.decoder.embed_tokens = None
    with pytest.raises(ValueError, match="no `embed_tokens`"):
        find_decoder(model)
