"""The tap on the parts of the decoder's layers, on a toy decoder. No vLLM is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from decoding.conformance.simulated_device import DEVICE, copy_to_device, simulate_device
from decoding.requests import MAIN
from decoding.tensor_hooks import LayerPlace
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker import steering_tap
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.steering_tap import GangSteeringTap
from tests.decoding.vllm_engine.worker.harness import (
    CPU,
    LAYERS,
    OTHER,
    PROMPT,
    WIDTH,
    ToyDecoder,
    build_specs,
    build_step,
    tap_decoder,
)

VECTORS = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(1))


def build_member(name: str, states: dict[str, str] | None = None, prefix: int = 0, **parameters: Any) -> Member:
    return Member(
        name,
        MAIN,
        1,
        stack=build_specs("steer", steer=parameters),
        states={"steer": "vectors"} if states is None else states,
        answer_prefix_length=prefix,
    )


WHOLE = build_member("whole", strength=2.0)
ANSWER = build_member("answer", positions="answer", part="feed_forward")
PREFIXED = build_member("prefixed", positions="answer", part="attention", prefix=2)
BROKEN = build_member("broken", states={})
Places = dict[int, list[tuple[str, float]]]  # token -> parts that are steered there, with the strength


def build_tap(decoder: ToyDecoder, device: torch.device = CPU) -> GangSteeringTap:
    states = StateStore(1 << 20)
    states.put_vectors("vectors", {"vectors": VECTORS if device == CPU else copy_to_device(VECTORS)})
    return GangSteeringTap(tap_decoder(decoder).layers, states, device)


def run_steered(decoder: Any, hidden: Tensor, places: Places) -> Tensor:
    """Run the layers of an untapped decoder token by token."""
    outputs = []
    for token, row in enumerate(hidden):
        strengths = dict(places.get(token, []))
        for number, layer in enumerate(decoder.layers):
            for part, module in (("attention", layer.self_attn), ("feed_forward", layer.mlp)):
                row = row + (
                    module(row).tanh() if part not in strengths else steer(module, row, strengths[part], number)
                )
            row = row + strengths.get("layer", 0) * VECTORS[number]
        outputs.append(row)
    return torch.stack(outputs)


def steer(module: Callable[[Tensor], Tensor], row: Tensor, strength: float, number: int) -> Tensor:
    """Steer what the module returns. The toy layer applies tanh after it."""
    return (module(row) + strength * VECTORS[number]).tanh()


CASES: list[tuple[list[Member | None], list[int], list[int], Places]] = [
    ([WHOLE, OTHER, None], [3, 2, 1], [0, 0, 7], {token: [("layer", 2.0)] for token in range(3)}),
    (
        [ANSWER, WHOLE, ANSWER],
        [4, 1, 1],
        [4, 8, 9],
        {2: [("feed_forward", 1.0)], 3: [("feed_forward", 1.0)], 4: [("layer", 2.0)], 5: [("feed_forward", 1.0)]},
    ),
    ([ANSWER], [3], [2], {}),
    ([PREFIXED], [PROMPT], [0], {token: [("attention", 1.0)] for token in range(PROMPT - 2, PROMPT)}),
]


@torch.inference_mode()
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("is_compiled", [False, True])
def test_tokens_of_steered_rows_are_edited(case: int, is_compiled: bool) -> None:
    """The code is compiled while the tap is idle, as at the start of vLLM."""
    members, lengths, computed, places = CASES[case]
    decoder = ToyDecoder()
    tap, plain = build_tap(decoder), ToyDecoder()
    run: Callable[[Tensor], Tensor] = decoder
    if is_compiled:
        run = torch.compile(decoder, backend="aot_eager", dynamic=True, fullgraph=True)
    hidden = torch.randn(sum(lengths), WIDTH)
    torch.testing.assert_close(run(hidden), run_steered(plain, hidden, {}))
    step = build_step(*members, lengths=lengths, computed=computed)
    for _ in range(2):  # from the second time on the layout is known
        token_info: dict[str, Any] = {}
        tap.before_forward(step, token_info)
        assert tap.is_idle == (not places)
        torch.testing.assert_close(run(hidden), run_steered(plain, hidden, places))
        tap.after_forward(step, token_info)
        assert not token_info
        torch.testing.assert_close(run(hidden), run_steered(plain, hidden, {}))


@torch.inference_mode()
def test_failing_hook_fails_its_own_request() -> None:
    decoder = ToyDecoder()
    tap, plain = build_tap(decoder), ToyDecoder()
    hidden, step = torch.randn(3, WIDTH), build_step(WHOLE, BROKEN, OTHER, lengths=[1, 1, 1], computed=[8, 8, 8])
    token_info: dict[str, Any] = {}
    tap.before_forward(step, token_info)
    actual = decoder(hidden)
    tap.after_forward(step, token_info)
    torch.testing.assert_close(actual, run_steered(plain, hidden, {0: [("layer", 2.0)]}))
    assert list(token_info) == ["row-1"]
    assert token_info["row-1"]["strategy"] == "steer"
    tap.reset()
    tap.before_forward(build_step(build_member("lost", states={"steer": "lost"}), lengths=[1]), token_info)
    assert tap.is_idle
    assert "error" in token_info["row-0"]


def test_requests_of_one_file_share_its_vectors() -> None:
    decoder = ToyDecoder()
    tap = build_tap(decoder)
    tap.before_forward(build_step(WHOLE, WHOLE, lengths=[1, 1], computed=[8, 8]), {})
    (steered,) = tap._steered
    assert steered.stack[0][1]["vectors"].shape == (2, LAYERS, WIDTH)
    assert steered.stack[0][1]["vectors"].stride(0) == 0


def test_dropped_step_steers_nothing() -> None:
    tap = build_tap(ToyDecoder())
    tap.before_forward(build_step(WHOLE, lengths=[1]), {})
    tap.reset()
    assert tap.is_idle
    outputs = torch.ones(1, WIDTH)
    tap.edit(LayerPlace("layer", 0, LAYERS), outputs, None)
    assert torch.equal(outputs, torch.ones(1, WIDTH))


def test_steering_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering_tap, "disable_cuda_graphs", lambda: None)
    with simulate_device(), torch.no_grad():
        with DEVICE:
            decoder = ToyDecoder()
        tap = build_tap(decoder, DEVICE)
        step = build_step(WHOLE, ANSWER, PREFIXED, OTHER, lengths=[3, 1, 6, 1], computed=[0, 9, 0, 8])
        token_info: dict[str, Any] = {}
        tap.before_forward(step, token_info)
        decoder(torch.randn(11, WIDTH, device=DEVICE))
        tap.after_forward(step, token_info)
        assert not token_info
