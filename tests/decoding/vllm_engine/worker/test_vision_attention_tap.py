"""The tap on the vision tower, on a toy tower. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decoding.vllm_engine.worker import vision_attention_tap
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.vision_attention_tap import CachedVisionAttentionTap

HEADS, HEAD_DIM, PATCHES, LAYERS, CHECKPOINT_LAYERS = 2, 4, 5, 2, 3
WIDTH = HEADS * HEAD_DIM


class ToyKernel(nn.Module):
    """Takes queries, keys and values, as vLLM's attention of a tower."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return value


class ToyTowerAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.scale = HEAD_DIM, HEAD_DIM**-0.5
        self.attn = ToyKernel()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.attn(*self.qkv(hidden).chunk(3, dim=-1))


def build_tower() -> tuple[list[ToyTowerAttention], CachedVisionAttentionTap]:
    layers = [ToyTowerAttention() for _ in range(LAYERS)]
    return layers, CachedVisionAttentionTap(layers, CHECKPOINT_LAYERS, HeadShards())


def run_tower(layers: list[ToyTowerAttention], images: Tensor) -> None:
    for layer in layers:
        images = layer(images)


@torch.no_grad()
def compute_weights(layers: list[ToyTowerAttention], image: Tensor) -> Tensor:
    """Compute the class token's attention to the patches by hand, [layers, heads, patches]."""
    weights = torch.zeros(CHECKPOINT_LAYERS, HEADS, PATCHES)
    for number, layer in enumerate(layers):
        query, key, value = layer.qkv(image).chunk(3, dim=-1)
        for head in range(HEADS):
            own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            weights[number, head] = (key[:, own] @ query[0, own] * HEAD_DIM**-0.5).softmax(-1)[1:]
        image = image + value
    return weights


@torch.no_grad()
def test_images_have_the_weights_of_their_passes_while_vllm_caches_their_features() -> None:
    layers, tap = build_tower()
    images, cached = torch.randn(3, PATCHES + 1, WIDTH), {}
    run_tower(layers, torch.randn(1, PATCHES + 1, WIDTH))  # a memory profile, whose image is never cached
    tap.discard_pending()
    run_tower(layers, images[:2])
    run_tower(layers, images[2:])
    for name in "abc":
        cached[name] = True
        tap.store(name, cached)
    assert set(tap.weights) == {"a", "b", "c"}
    for name, image in zip("abc", images, strict=True):
        torch.testing.assert_close(tap.weights[name], compute_weights(layers, image))
    collected = tap.collect(["c", "a"])
    assert collected is not None
    torch.testing.assert_close(collected[:, 1], tap.weights["a"])
    assert tap.collect([]) is None
    del cached["a"]
    tap.discard_pending()
    run_tower(layers, images[:1])
    tap.store("d", cached | {"d": True})
    assert set(tap.weights) == {"b", "c", "d"}
    torch.testing.assert_close(tap.weights["d"], compute_weights(layers, images[0]))


def test_features_that_do_not_come_from_the_tower_have_no_weights() -> None:
    _, tap = build_tower()
    tap.discard_pending()
    tap.store("sent", {"sent": True})
    assert not tap.weights


class LlavaModel(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.vision_tower = tower
        self.config = SimpleNamespace(vision_feature_select_strategy="default")


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList([nn.Module() for _ in range(LAYERS)])
        for layer in layers:
            layer.self_attn = ToyTowerAttention()
        encoder = nn.Module()
        encoder.layers, encoder.config = layers, SimpleNamespace(num_hidden_layers=CHECKPOINT_LAYERS)  # type: ignore[assignment]
        self.vision_model = nn.Module()
        self.vision_model.encoder = encoder


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(vision_attention_tap, "MODEL", f"{__name__}.LlavaModel")
    monkeypatch.setattr(vision_attention_tap, "TOWER", f"{__name__}.Tower")
    compilation = SimpleNamespace(compile_mm_encoder=False, cudagraph_mm_encoder=False)
    config = SimpleNamespace(compilation_config=compilation)
    multimodal = SimpleNamespace(multimodal_config=SimpleNamespace(mm_encoder_tp_mode="weights"))
    return SimpleNamespace(model=LlavaModel(Tower()), vllm_config=config, model_config=multimodal)


def test_tower_is_found(runner: Any) -> None:
    assert CachedVisionAttentionTap.from_runner(runner, HeadShards()).num_layers == CHECKPOINT_LAYERS


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("vllm_config.compilation_config.compile_mm_encoder", True, "compiles the vision tower"),
        ("vllm_config.compilation_config.cudagraph_mm_encoder", True, "CUDA graph"),
        ("model_config.multimodal_config.mm_encoder_tp_mode", "data", "images of its own"),
        ("model.config.vision_feature_select_strategy", "full", "class token"),
        ("model.vision_tower", None, "LLaVA model with a CLIP tower"),
    ],
)
def test_tower_that_cannot_be_tapped_is_refused(runner: Any, path: str, value: object, reason: str) -> None:
    *parents, name = path.split(".")
    target = runner
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, name, value)
    with pytest.raises(ValueError, match=reason):
        CachedVisionAttentionTap.from_runner(runner, HeadShards())
