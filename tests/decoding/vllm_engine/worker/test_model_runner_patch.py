"""The taps on the model of a model runner, with a toy model. No vLLM is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import torch
from torch import nn

from decoding.errors import Unsupported
from decoding.pipeline.attention_statistics import STATISTICS_KEY, write_attention_statistics
from decoding.prompt import Prompt
from decoding.requests import MAIN, GenerateRequest
from decoding.vllm_engine.engine import VllmEngine
from decoding.vllm_engine.member import Member, ProbeSpec, StrategySpec
from decoding.vllm_engine.settings import VllmSettings
from decoding.vllm_engine.worker import early_exit_tap, head_projection
from decoding.vllm_engine.worker.attention import attention_tap
from decoding.vllm_engine.worker.attention.attention_tap import GangAttentionTap
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.head_tap import GangHeadTap
from decoding.vllm_engine.worker.model_runner_patch import install_taps
from decoding.vllm_engine.worker.steering_tap import GangSteeringTap
from decoding.vllm_engine.worker.step_hook_runner import StepHookRunner
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.worker.harness import (
    CPU,
    LAYERS,
    PROMPT,
    FlashAttentionImpl,
    ToyLayer,
    ToyModel,
    build_step,
    is_toy_attention,
)


@pytest.fixture(autouse=True)
def with_toy_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (early_exit_tap, head_projection, attention_tap):
        monkeypatch.setattr(module, "has_attention", is_toy_attention)


def build_runner(impl: object, **additional_config: Any) -> Any:
    """Build a model runner whose attention layers have the given implementation."""
    limits = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=2),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(fuse_attn_quant=False)),
        additional_config=additional_config,
    )
    sizes = SimpleNamespace(num_hidden_layers=LAYERS, num_attention_heads=2)
    config = SimpleNamespace(dtype=torch.float32, hf_config=SimpleNamespace(get_text_config=lambda: sizes))
    model = ToyModel()
    for layer in model.decoder.layers:
        layer.attention.attn = SimpleNamespace(num_heads=2, impl=impl)
        layer.attention.o_proj = nn.Identity()
    return SimpleNamespace(model=model, vllm_config=limits, model_config=config, max_num_tokens=4, device=CPU)


def test_model_that_cannot_be_tapped_is_refused_with_the_reason() -> None:
    runner = build_runner(None)
    hooks = StepHookRunner(CPU)
    with structlog.testing.capture_logs():
        install_taps(runner, hooks, HeadShards())
    reason = "vLLM's layers of this model cannot be tapped: the layer class ToyLayer is not in `TAPPED_LAYERS`"
    other = (
        "vLLM's attention of this model cannot be computed a second time: "
        "the KV cache of NoneType has an unknown layout"
    )
    attention = dict.fromkeys(("edit_attention_scores", "gate_heads", "attention", "keep_image_tokens"), other)
    vision = "vLLM's vision tower of this model cannot be tapped: it needs a LLaVA model with a CLIP tower"
    assert hooks.missing == {
        "early_exit_layers": reason,
        "steer": reason,
        "hidden_states": reason,
        **attention,
        "vision_attention": vision,
    }
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
        install_taps(runner, hooks, HeadShards())
    assert set(hooks.missing) == {
        "early_exit_layers",
        "steer",
        "hidden_states",
        *attention,
        "vision_attention",
        "head_scales",
        "probe",
    }


def test_head_tap_reads_the_captures_of_the_attention_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_exit_tap, "TAPPED_LAYERS", {f"{ToyLayer.__module__}.ToyLayer.forward"})
    runner, hooks = build_runner(FlashAttentionImpl()), StepHookRunner(CPU)
    runner.model.compute_logits = lambda hidden: runner.model.lm_head(hidden)
    with structlog.testing.capture_logs():
        install_taps(runner, hooks, HeadShards())
    assert hooks.missing.keys() == {"vision_attention"}
    assert hooks.get_stats()["layers"] == LAYERS
    early_exits, steering, heads, attention = hooks.taps
    assert isinstance(steering, GangSteeringTap)
    assert isinstance(early_exits, GangEarlyExitTap)
    assert isinstance(heads, GangHeadTap)
    assert isinstance(attention, GangAttentionTap)
    assert heads.captured_attention is attention.captured_attention
    assert heads.collect_vision_attention is None


def test_attention_tap_loads_the_statistics_that_the_configuration_names(tmp_path: Path) -> None:
    file, statistics = tmp_path / "s.safetensors", torch.rand(2, LAYERS, 2)
    write_attention_statistics(file, *statistics)
    for expected, additional_config in ((statistics, {STATISTICS_KEY: str(file)}), (None, {})):
        runner = build_runner(FlashAttentionImpl(), **additional_config)
        tap = GangAttentionTap.from_runner(runner, StepHookRunner(CPU).states, HeadShards())
        found = tap.context.statistics
        assert found == {} if expected is None else torch.equal(found["real"], expected[1])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("attention", "The attention is not tapped."),
        ("vision_attention", "The vision tower is not tapped."),
        ("hidden_states", "The layers are not tapped."),
    ],
)
def test_probe_fails_if_what_it_captures_is_not_tapped(kind: str, reason: str) -> None:
    """The server refuses such probes at their admission."""
    hooks = StepHookRunner(CPU)
    spec = ProbeSpec(StrategySpec("sid", "{}"), "with_image", False, "state", (kind,))
    member = Member("probe", MAIN, 1, is_single_step=True, probe=spec)
    with structlog.testing.capture_logs():
        install_taps(build_runner(None), hooks, HeadShards())
        hooks.before_forward(build_step(member, lengths=[PROMPT], computed=[0]))
    assert hooks.take_token_info().resolve()["row-0"]["error"] == reason
