"""The engine's steps on a simulated GPU: a step waits for the device only where it reads its tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decoding.conformance.simulated_device import DEVICE, copy_all_to_device, copy_to_device, simulate_device
from decoding.hf_engine import batch as batch_module
from decoding.hf_engine.batch import Batch
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import model as model_module
from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.model.network import load_network
from decoding.hf_engine.prefill import PrefillOutputs
from decoding.hf_engine.request import RequestState
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.strategy_state import StoredStrategyState
from decoding.pipeline.logits_hooks import UNCHANGED
from decoding.requests import MAIN, GenerateRequest
from decoding.text.prompt_encoder import AnswerStart, ModelInputs
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, run_strategies

STEPS = 2
# Each kind of hook and of branch. `onlyseen-check` calls every hook of the others on the simulated GPU.
STACKS = ["plain", "agla+vhr", "avisc+pai", "paint", "sid", "dola", "mvp", "vdgd+vcd"]
CapturedRequest = tuple[GenerateRequest, dict[str, StoredStrategyState], AnswerStart, dict[str, ModelInputs]]


@pytest.fixture(scope="module")
def simulated_model(tiny: Path) -> Model:
    """Load the tiny model, with weights of the simulated device."""

    settings = HFSettings(str(tiny), device="cpu")
    network, encoder = load_network(settings), Model(settings).encoder  # the encoder processes an image at its start
    with pytest.MonkeyPatch.context() as patched, simulate_device():
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(copy_to_device(parameter), requires_grad=False)
            module._buffers.update(copy_all_to_device(module._buffers))
        patched.setattr(model_module, "load_network", lambda _: network)
        patched.setattr(model_module, "PromptEncoder", lambda *_: encoder)
        patched.setattr(model_module, "pack_linears", lambda *_: None)  # of a CPU only
        return Model(settings)


async def capture_requests(engine: HFEngine, names: str) -> list[CapturedRequest]:
    """Run a stack on the real engine, and return all generation requests that it made, with their inputs."""
    captured: list[CapturedRequest] = []
    build_request = engine._build_request

    def capture(request: GenerateRequest, states: Any, answer_start: AnswerStart) -> RequestState:
        captured.append((request, dict(states), answer_start, dict(engine._encode_request(request, answer_start))))
        return build_request(request, states, answer_start)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "_build_request", capture)
        parameters = {"verify": {"threshold": 0.0}} if names == "verify" else {}
        await run_strategies(engine, build_stack(names, **parameters), make_prompt(), exact_length(4))
    return captured


@dataclass(frozen=True)
class InputsWithoutValues(ModelInputs):
    """Inputs of the host without values, which a simulated device requires, and with the number of image tokens."""

    image_tokens: int

    def count_token(self, token: int) -> int:
        return self.image_tokens


def copy_inputs(inputs: ModelInputs, image_tokens: int) -> ModelInputs:
    extras = {name: torch.empty(extra.shape, dtype=extra.dtype) for name, extra in inputs.extras.items()}
    return InputsWithoutValues(torch.empty(len(inputs), dtype=torch.long), extras, image_tokens)


def build_prefills(model: Model, request: RequestState) -> PrefillOutputs:
    """Return outputs of the request's prompts."""
    config, prefills = model.decoder.config, PrefillOutputs()
    for name in request.row_prompts:
        length = len(request.inputs[name])
        shape = (config.num_key_value_heads, length, config.head_dim)
        key_values = [(torch.empty(shape, device=DEVICE), torch.empty(shape, device=DEVICE))] * model.num_layers
        early_logits = {
            strategy: torch.empty(len(own.layers), model.vocab_size, device=DEVICE)
            for strategy, own in request.early_exits.items()
            if name == MAIN
        }
        logits = torch.empty(model.vocab_size, device=DEVICE)
        prefills[id(request), name] = PrefillOutput(key_values, length, logits, early_logits)
    return prefills


@pytest.mark.parametrize("names", STACKS)
async def test_steps_wait_only_for_their_tokens(
    names: str, engine: HFEngine, simulated_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reads = simulated_model, 0
    captured = await capture_requests(engine, names) + await capture_requests(engine, "plain")
    image_tokens = [
        {name: each.count_token(model.image_token_id) for name, each in inputs.items()} for *_, inputs in captured
    ]
    generator = torch.Generator  # the simulated device has none

    def read_tokens(sampled: Tensor, status: Tensor) -> list[tuple[int, int]]:
        nonlocal reads
        reads += 1
        assert sampled.device == status.device == DEVICE
        return [(5, UNCHANGED)] * len(sampled)

    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr(Tensor, "exponential_", lambda tensor, generator: tensor)
    monkeypatch.setattr(batch_module, "read_tokens", read_tokens)
    with simulate_device(), torch.no_grad():
        batch, requests, prefills = Batch(model, 1 << 20), list[RequestState](), PrefillOutputs()
        for (source, states, answer_start, inputs), counts in zip(captured, image_tokens, strict=True):
            if source.scored_texts:
                continue
            request = RequestState(
                replace(source, sampling=replace(source.sampling, min_tokens=2, top_logprobs=None)),
                {name: copy_inputs(each, counts[name]) for name, each in inputs.items()},
                {name: StoredStrategyState(copy_all_to_device(state.tensors)) for name, state in states.items()},
                model,
                engine._token_text,
                engine._grammars,
                replace(answer_start, ruled_out=((7,), (5, 9))),
            )
            requests.append(request)
            prefills |= build_prefills(model, request)
        outputs = [batch.add_requests(requests, prefills)]
        outputs += [batch.step() for _ in range(STEPS)]
        assert reads == 1 + STEPS
        assert [output for step in outputs for _, output in step if isinstance(output, Exception)] == []
