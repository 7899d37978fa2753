"""The tap on vLLM's attention, on a toy cache with the layout of a GPU. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from torch import Tensor

from decoding.conformance.simulated_device import DEVICE, simulate_device
from decoding.requests import MAIN
from decoding.strategies.pai import PAI
from decoding.tensor_hooks import AttentionKeys
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.attention_recomputation import AttentionContext
from decoding.vllm_engine.worker.attention_tap import GangAttentionTap
from decoding.vllm_engine.worker.image_tokens import ImageTokens, find_image_tokens
from decoding.vllm_engine.worker.paged_attention import build_mask, check_attention
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo
from tests.decoding.vllm_engine.worker.test_step_hook_runner import build_rows, build_specs

HEADS, KV_HEADS, HEAD_DIM, BLOCK, BLOCKS_OF_ROW = 4, 2, 8, 4, 4
PROMPT = 6
IMAGE = (-1, 0, 1, 2, -1, -1)  # index of the image tokens of the prompt
EDITED = Member("edited", MAIN, 1, stack=build_specs("pai", pai={"alpha": 2.0, "gamma": 1.0, "first_layer": 0}))
OTHER = Member("other", MAIN, 1, stack=build_specs("truncate"))


class FlashAttentionImpl:
    """Has the attributes of vLLM's class, and leaves the output at 0."""

    def __init__(self, window: int = 0) -> None:
        self.scale = HEAD_DIM**-0.5
        self.sliding_window = (window - 1, 0) if window else (-1, -1)
        self.logits_soft_cap, self.sinks, self.alibi_slopes = 0, None, None
        self.kv_cache_dtype, self.kv_sharing_target_layer_name, self.attn_type = "auto", None, "decoder"

    def forward(self, *args: Any) -> Tensor:
        output: Tensor = args[-1]
        return output


class ToyStep:
    """A step with random queries, and a KV cache in which the blocks of the rows are mixed."""

    def __init__(self, step: StepRows, device: torch.device) -> None:
        self.rows = step
        count = int(step.token_starts[-1])
        self.query = torch.randn(count, HEADS, HEAD_DIM, device=device)
        blocks = BLOCKS_OF_ROW * len(step.request_ids)
        self.cache = torch.randn(blocks, KV_HEADS, BLOCK, 2 * HEAD_DIM, device=device)
        self.block_table = torch.randperm(blocks, device=device).view(len(step.request_ids), -1)
        self.output = torch.zeros(count, HEADS, HEAD_DIM, device=device)

    def run(self, tap: GangAttentionTap, layer: Any) -> TokenInfo:
        token_info = TokenInfo()
        tap.before_forward(self.rows, token_info)
        self.call(layer)
        tap.after_forward(self.rows, token_info)
        return token_info

    def call(self, layer: Any) -> None:
        metadata = SimpleNamespace(block_table=self.block_table)
        layer.impl.forward(layer, self.query, None, None, self.cache, metadata, self.output)

    def attend(self, row: int, token: int, position: int, window: int = 0) -> Tensor:
        """Compute the edited attention of one token by hand, head by head. Return [heads, head_dim]."""
        blocks = self.cache[self.block_table[row]]  # [blocks, kv heads, block, 2 * head_dim]
        first = max(0, position - window + 1) if window else 0
        outputs = []
        for head in range(HEADS):
            keys, values = blocks[:, head * KV_HEADS // HEADS].flatten(0, 1)[: position + 1].split(HEAD_DIM, -1)
            scores = keys @ self.query[token, head] * HEAD_DIM**-0.5
            for key in range(min(PROMPT, position + 1)):
                if IMAGE[key] >= 0:
                    scores[key] += 2.0 * scores[key].abs()
            outputs.append(scores[first:].softmax(-1) @ values[first:])
        return torch.stack(outputs)


def build_step(*members: Member | None, computed: list[int], lengths: list[int]) -> StepRows:
    """Build a step in which rows run several tokens of prompts of `PROMPT` tokens and of their answers."""
    step = build_rows(*members)
    step.token_starts[1:] = np.cumsum(lengths)
    step.num_computed_tokens[:] = computed
    step.num_tokens[:] = [max(PROMPT, sum(each)) for each in zip(computed, lengths, strict=True)]
    step.num_generated_tokens[:] = step.num_tokens - PROMPT
    return step


def build_tap(device: torch.device, window: int = 0, states: StateStore | None = None) -> tuple[GangAttentionTap, Any]:
    layer = SimpleNamespace(impl=FlashAttentionImpl(window))
    image_tokens = ImageTokens(torch.tensor(IMAGE), 3)
    context = AttentionContext(1, states or StateStore(1 << 20), lambda _: image_tokens, device)
    return GangAttentionTap([layer], context), layer


@pytest.mark.parametrize("window", [0, 3])
def test_last_token_of_a_prompt_and_all_of_the_answer_are_edited(window: int) -> None:
    """The first row ends its prompt, the second one decodes, and the last one recomputes after a preemption."""
    torch.manual_seed(0)
    step = ToyStep(
        build_step(EDITED, EDITED, OTHER, EDITED, computed=[4, 8, 7, 3], lengths=[2, 1, 1, 6]), torch.device("cpu")
    )
    tap, layer = build_tap(torch.device("cpu"), window)
    assert step.run(tap, layer) == {}
    edited = {(0, 1): 5, (1, 2): 8, **{(3, 6 + n): 5 + n for n in range(4)}}  # row and token -> position
    for (row, token), position in edited.items():
        torch.testing.assert_close(step.output[token], step.attend(row, token, position, window))
    untouched = set(range(len(step.output))) - {token for _, token in edited}
    assert not step.output[sorted(untouched)].any()


def test_chunk_before_the_end_of_a_prompt_is_not_edited() -> None:
    step = ToyStep(build_step(EDITED, OTHER, computed=[0, 7], lengths=[4, 1]), torch.device("cpu"))
    tap, layer = build_tap(torch.device("cpu"))
    step.run(tap, layer)
    assert not step.output.any()


@pytest.mark.parametrize("is_shape", [True, False])
def test_failing_edit_fails_its_own_request(is_shape: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both requests share the call of the hook, which fails where a key is not finite."""
    plain = PAI.edit_attention_scores

    def edit(self: PAI, scores: Tensor, keys: AttentionKeys, state: object) -> Tensor:
        if scores.isfinite().all():
            return plain(self, scores, keys, state)
        if is_shape:
            return scores[..., 1:]
        raise ZeroDivisionError

    monkeypatch.setattr(PAI, "edit_attention_scores", edit)
    step = ToyStep(build_step(EDITED, EDITED, computed=[7, 7], lengths=[1, 1]), torch.device("cpu"))
    step.cache[step.block_table[1, 0]] = torch.inf
    tap, layer = build_tap(torch.device("cpu"))
    with structlog.testing.capture_logs():
        token_info = step.run(tap, layer)
    assert set(token_info) == {"row-1"}
    assert token_info["row-1"]["strategy"] == "pai"
    torch.testing.assert_close(step.output[0], step.attend(0, 0, 7))


def test_blocks_of_other_requests_do_not_change_an_edit() -> None:
    """A shorter row is edited beside a longer one, and so gathers blocks that it does not own."""
    step = ToyStep(build_step(EDITED, EDITED, computed=[7, 5], lengths=[1, 1]), torch.device("cpu"))
    step.cache[step.block_table[1, 1], :, 2:] = torch.inf  # positions 6 and 7 of the second row
    tap, layer = build_tap(torch.device("cpu"))
    assert step.run(tap, layer) == {}
    torch.testing.assert_close(step.output[1], step.attend(1, 1, 5))


def test_edits_do_not_wait_for_the_device() -> None:
    with simulate_device(), torch.no_grad():
        step = ToyStep(build_step(EDITED, OTHER, EDITED, computed=[4, 7, 3], lengths=[2, 1, 6]), DEVICE)
        tap, layer = build_tap(DEVICE)
        assert step.run(tap, layer) == {}
        assert step.output.device == DEVICE


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("logits_soft_cap", 50.0, "soft caps"),
        ("sinks", torch.zeros(1), "attention sinks"),
        ("alibi_slopes", [1.0], "ALiBi"),
        ("kv_cache_dtype", "fp8_e4m3", "a KV cache of the type fp8_e4m3"),
        ("kv_sharing_target_layer_name", "other", "of other layers"),
        ("attn_type", "encoder_only", "not causal"),
    ],
)
def test_attention_with_another_feature_is_refused(attribute: str, value: object, reason: str) -> None:
    impl = FlashAttentionImpl()
    check_attention([SimpleNamespace(impl=impl)], fuses_quantization=False)
    with pytest.raises(ValueError, match="fuses the attention"):
        check_attention([SimpleNamespace(impl=impl)], fuses_quantization=True)
    setattr(impl, attribute, value)
    with pytest.raises(ValueError, match=reason):
        check_attention([SimpleNamespace(impl=impl)], fuses_quantization=False)


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="the KV cache of SimpleNamespace has an unknown layout"):
        check_attention([SimpleNamespace(impl=SimpleNamespace())], fuses_quantization=False)


def test_mask_has_the_window_of_the_layer() -> None:
    assert build_mask(SimpleNamespace(sliding_window=-1), torch.tensor([2]), 5).tolist() == [[True] * 3 + [False] * 2]
    for window in (2, (1, 0)):  # of the CPU backend, and of others
        mask = build_mask(SimpleNamespace(sliding_window=window), torch.tensor([2]), 5)
        assert mask.tolist() == [[False, True, True, False, False]]


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
