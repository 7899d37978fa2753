"""The image tokens of a prompt in vLLM's model runner. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from decoding.vllm_engine.worker.image_tokens import find_image_tokens


def test_image_tokens_are_indexed() -> None:
    places = [
        SimpleNamespace(offset=1, length=3, is_embed=torch.tensor([True, False, True])),
        SimpleNamespace(offset=5, length=2, is_embed=None),
    ]
    features = [SimpleNamespace(mm_position=place) for place in places]
    request = SimpleNamespace(num_prompt_tokens=8, mm_features=features)
    image_tokens = find_image_tokens(request)
    assert image_tokens.index.tolist() == [-1, 0, -1, 1, -1, 2, 3, -1]
    assert image_tokens.count == 4
    assert image_tokens.compute_positions().tolist() == [1, 3, 5, 6]
