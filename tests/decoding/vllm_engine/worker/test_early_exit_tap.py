"""The tap on the decoder's layers, on a toy decoder. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor, nn

from decoding.errors import Unsupported
from decoding.pipeline.early_exits import find_early_exits
from decoding.prompt import Prompt
from decoding.requests import MAIN, GenerateRequest
from decoding.tensor_hooks import EarlyExits, Step
from decoding.vllm_engine.engine import VllmEngine
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.settings import VllmSettings
from decoding.vllm_engine.worker import attention_tap, early_exit_tap, head_projection
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap, TappedLayer, find_decoder
from decoding.vllm_engine.worker.model_runner_patch import install_taps
from decoding.vllm_engine.worker.step_hook_runner import StepHookRunner
from decoding.vllm_engine.worker.step_rows import StepRows
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.worker.test_step_hook_runner import VOCAB, build_rows, build_specs

LAYERS, WIDTH, MAX_ROWS = 4, 8, 6
CPU = torch.device("cpu")


class ToyLayer(nn.Module):
    """A layer with the arguments of vLLM's, which leaves the sum to the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden_states if residual is None else hidden_states + residual
        return self.linear(residual).tanh(), residual


class ToyDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(ToyLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, hidden: Tensor) -> Tensor:
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(torch.arange(len(hidden)), hidden, residual)
        assert residual is not None
        return hidden + residual


def tap_decoder(decoder: Any) -> GangEarlyExitTap:
    return GangEarlyExitTap(decoder, decoder.head, False, MAX_ROWS, torch.float32, CPU)


def sum_layers(decoder: Any, hidden: Tensor, depth: int) -> Tensor:
    """Return the hidden states after some layers, computed by hand."""
    for layer in list(decoder.layers)[:depth]:
        own = layer.layer if isinstance(layer, TappedLayer) else layer
        hidden = hidden + own.linear(hidden).tanh()
    return hidden


def build_step(*members: Member | None, lengths: list[int], is_sampling: list[bool] | None = None) -> StepRows:
    """Build a step in which each row runs several tokens."""
    step = build_rows(*members, is_sampling=is_sampling)
    step.token_starts[1:] = torch.tensor(lengths).cumsum(0).numpy()
    return step


DOLA, VCD = Member("dola", MAIN, 1, stack=build_specs("dola")), Member("vcd", MAIN, 1, stack=build_specs("vcd"))


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


def test_failure_of_a_step_resets_the_tap() -> None:
    runner = StepHookRunner(CPU)
    tap = tap_decoder(ToyDecoder())
    runner.add_early_exit_tap(tap)
    step = build_step(DOLA, lengths=[3])
    runner.before_forward(step)
    tap.buffers.states = torch.empty(0)  # a fault of the engine
    runner.before_sampling(step, torch.randn(1, VOCAB))
    assert tap.is_idle
    assert not tap.buffers.last_tokens.any()
    assert runner.take_token_info()["row-0"]["error"] == "The engine failed on this request."


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


@torch.inference_mode()
def test_hooks_receive_their_own_early_logits() -> None:
    """Rows of several stacks share a step. One of the stacks reads no early exits."""
    runner, decoder = StepHookRunner(CPU), ToyDecoder()
    runner.add_early_exit_tap(tap_decoder(decoder))
    deco = Member("deco", MAIN, 1, stack=build_specs("deco"))
    truncate = Member("truncate", MAIN, 1, stack=build_specs("truncate"))
    step, hidden = build_step(deco, truncate, DOLA, lengths=[2, 2, 2]), torch.randn(6, WIDTH)
    runner.before_forward(step)
    last = decoder(hidden)
    runner.after_forward(step)
    raw = decoder.head(decoder.norm(last))[1::2]
    scores = runner.before_sampling(step, raw.clone())
    for row, name in ((0, "deco"), (2, "dola")):
        (strategy,) = build_stack(name)
        layers = find_early_exits((strategy,), LAYERS, False)[name].layers
        states = torch.stack([sum_layers(decoder, hidden, depth)[2 * row + 1] for depth in layers])
        early = decoder.head(decoder.norm(states))
        expected = strategy.logits(Step(raw[row], raw[row], {}, {}, torch.zeros(1), early))
        torch.testing.assert_close(scores[row], expected)
    assert (scores[1] == -torch.inf).any()
    runner.after_sampling(step, scores.argmax(-1, keepdim=True))
    assert not any("error" in info for info in runner.take_token_info().values())


class ToyAttention(nn.Module):
    """Stands for vLLM's attention with a KV cache."""


def is_toy_attention(module: object) -> bool:
    return isinstance(module, ToyAttention)


class ToyModel(nn.Module):
    """A model as vLLM nests it."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = ToyDecoder()  # its layers have no KV cache
        self.decoder: Any = ToyDecoder()
        self.decoder.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        for layer in self.decoder.layers:
            layer.attention = ToyAttention()
        self.lm_head = nn.Linear(WIDTH, VOCAB)


def test_decoder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_exit_tap, "has_attention", is_toy_attention)
    monkeypatch.setattr(early_exit_tap, "TAPPED_LAYERS", {f"{__name__}.ToyLayer.forward"})
    model = ToyModel()
    assert find_decoder(model) == (model.decoder, model.lm_head)
    model.decoder.embed_tokens = None
    with pytest.raises(ValueError, match="no `embed_tokens`"):
        find_decoder(model)


def test_model_that_cannot_be_tapped_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (early_exit_tap, head_projection, attention_tap):
        monkeypatch.setattr(module, "has_attention", is_toy_attention)
    limits = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=2),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(fuse_attn_quant=False)),
    )
    config = SimpleNamespace(dtype=torch.float32)
    runner = SimpleNamespace(model=ToyModel(), vllm_config=limits, model_config=config, max_num_tokens=4, device=CPU)
    for layer in runner.model.decoder.layers:
        layer.attention.attn = SimpleNamespace(num_heads=2, impl=None)
        layer.attention.o_proj = nn.Identity()
    hooks = StepHookRunner(CPU)
    with structlog.testing.capture_logs():
        install_taps(runner, hooks)
    reason = "vLLM's layers of this model cannot be tapped: the layer class ToyLayer is not in `TAPPED_LAYERS`"
    other = (
        "vLLM's attention of this model cannot be computed a second time: "
        "the KV cache of NoneType has an unknown layout"
    )
    attention = dict.fromkeys(("edit_attention_scores", "attention", "keep_image_tokens"), other)
    vision = "vLLM's vision tower of this model cannot be tapped: it needs a LLaVA model with a CLIP tower"
    assert hooks.missing == {"early_exit_layers": reason, **attention, "vision_attention": vision}
    assert hooks.get_stats() == {
        "states": 0,
        "state_bytes": 0,
        "missing": hooks.missing,
        "layers": 0,
        "has_tied_embeddings": False,
    }
    engine = VllmEngine(VllmSettings("", matcher=""))
    assert "early_exit_layers" in engine.capabilities
    engine._missing = hooks.missing
    request = GenerateRequest(Prompt.from_text("Hello."), stack=build_stack("dola"))
    engine._has_state = lambda _: True  # type: ignore[method-assign]
    with pytest.raises(Unsupported, match="cannot run 'dola': it lacks early_exit_layers: vLLM's layers of this model"):
        engine._check_request(request)
    runner.model.decoder.layers = nn.ModuleList()
    with structlog.testing.capture_logs():
        install_taps(runner, hooks)
    assert set(hooks.missing) == {"early_exit_layers", *attention, "vision_attention", "head_scales", "probe"}


def test_request_fails_if_the_model_is_not_tapped() -> None:
    """The server refuses such requests at their admission."""
    runner, step = StepHookRunner(CPU), build_step(DOLA, lengths=[1])
    raw = torch.randn(1, VOCAB)
    assert torch.equal(runner.before_sampling(step, raw.clone()), raw)
    runner.after_sampling(step, torch.tensor([[3]]))
    assert runner.take_token_info()["row-0"]["error"] == "The layers of the model are not tapped."
