"""Tap on the vision tower: the attention of its class token to the patches, for each image in vLLM's encoder cache."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoding.vllm_engine.worker.head_shards import HeadShards

TOWER = "vllm.model_executor.models.clip.CLIPVisionModel"
# Models with one token of the language model for each patch of an image.
MODEL = "vllm.model_executor.models.llava.LlavaForConditionalGeneration"


class CachedVisionAttentionTap:
    """The tap on one CLIP tower, which is not compiled.

    Every image is observed, because a probe of an image whose features are cached does not run the tower.

    Attributes:
        weights: Image hash -> [tower layers, heads, patches], as long as vLLM caches the features of the image.

    Args:
        layers: Attention modules of the tower's layers.
        num_layers: Layers of the checkpoint's tower. vLLM leaves out those after the one that it reads. Their weights
            are 0.
        shards: The heads that this process runs.
    """

    def __init__(self, layers: Sequence[Any], num_layers: int, shards: HeadShards) -> None:
        self.weights: dict[str, Tensor] = {}
        self.num_layers = num_layers
        self._shards = shards
        self._passes: list[list[Tensor]] = []  # [images, heads, patches] of each layer, by pass of the tower
        self._images: list[Tensor] = []  # [tower layers, heads, patches] of images that vLLM has not cached yet
        for number, attention in enumerate(layers):
            attention.attn.register_forward_pre_hook(self._build_observer(attention, is_first=number == 0))

    @classmethod
    def from_runner(cls, runner: Any, shards: HeadShards) -> CachedVisionAttentionTap:
        """Tap the tower of a model runner.

        Args:
            runner: vLLM's model runner.
            shards: The heads that this process runs.

        Returns:
            The tap. `ValueError` gives the reason if the tower cannot be tapped.

        Raises:
            ValueError: The model has no such tower, or its features are not one for each patch.
        """
        tower = getattr(runner.model, "vision_tower", None)
        names = [f"{type(each).__module__}.{type(each).__qualname__}" for each in (runner.model, tower)]
        if names != [MODEL, TOWER]:
            raise ValueError("it needs a LLaVA model with a CLIP tower")
        compilation = runner.vllm_config.compilation_config
        if compilation.compile_mm_encoder or compilation.cudagraph_mm_encoder:
            raise ValueError("vLLM compiles the vision tower or runs it as a CUDA graph")
        if runner.model.config.vision_feature_select_strategy != "default":
            raise ValueError("the class token is a token of the language model")
        if runner.model_config.multimodal_config.mm_encoder_tp_mode != "weights":
            raise ValueError("each device runs the vision tower on images of its own")
        encoder = tower.vision_model.encoder  # type: ignore[union-attr]
        layers = [layer.self_attn for layer in encoder.layers]
        return cls(layers, encoder.config.num_hidden_layers, shards)

    def discard_pending(self) -> None:
        """Discard the weights of images that vLLM has not cached, such as those of its memory profile."""
        self._passes, self._images = [], []

    def store(self, image_hash: str, cached: Container[str]) -> None:
        """Store the weights of the next image, in the order in which the tower had them.

        Args:
            image_hash: Hash of the image.
            cached: Hashes of the images whose features vLLM caches.
        """
        self._images += [image for layers in self._passes for image in self._stack(layers)]
        self._passes = []
        self.weights = {each: weights for each, weights in self.weights.items() if each in cached}
        if self._images:  # features that a client sends do not come from the tower
            self.weights[image_hash] = self._images.pop(0)

    def collect(self, image_hashes: Sequence[str]) -> Tensor | None:
        """Return the weights of the images of a prompt, [tower layers, images, heads, patches]; None without images."""
        return torch.stack([self.weights[each] for each in image_hashes], 1) if image_hashes else None

    def _stack(self, layers: Sequence[Tensor]) -> Tensor:
        """Stack the layers of one pass to [images, tower layers, heads, patches]."""
        weights = torch.stack(list(layers), 1)
        missing = self.num_layers - len(layers)
        return nn.functional.pad(weights, (0, 0, 0, 0, 0, missing))

    def _build_observer(self, attention: Any, *, is_first: bool) -> Any:
        """Build the observer of one layer, a forward pre-hook of torch."""

        def observe(_: object, inputs: tuple[Tensor, ...]) -> None:
            if is_first:
                self._passes.append([])
            query, key = (torch.unflatten(each, -1, (-1, attention.head_dim)).transpose(1, 2) for each in inputs[:2])
            scores = (query[:, :, :1] @ key.mT)[:, :, 0] * attention.scale  # [images, heads, tokens]
            weights = scores.softmax(-1, dtype=torch.float32)[..., 1:]
            self._passes[-1].append(self._shards.gather(weights, 1))

        return observe
