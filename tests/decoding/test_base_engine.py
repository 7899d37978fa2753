"""The methods that both engines inherit, on an engine without a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from decoding.base_engine import BaseEngine, ForcedPrefix
from decoding.engine import Capability, EngineSettings
from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.outputs import FinishInfo, StateHandle, Token, Usage
from decoding.requests import GenerateRequest, ProbeRequest, Prompt, RelevanceRequest, VectorsRequest
from decoding.text.prompt_encoder import AnswerStart
from tests.decoding.hf_engine.harness import make_image

PROMPT = Prompt.from_text("?")


class EngineWithoutModel(BaseEngine):
    is_alive = True
    encoder: Any = None

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        raise NotImplementedError

    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        raise NotImplementedError

    def free_state(self, state: StateHandle) -> None:
        pass

    @property
    def counter_help(self) -> Mapping[str, str]:
        return {}

    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        raise NotImplementedError

    async def get_counters(self) -> Mapping[str, int]:
        return {}

    def _get_model_capabilities(self) -> frozenset[Capability]:
        return frozenset({"branches", "logits"})

    def _has_state(self, state: StateHandle) -> bool:
        return False

    def _check_length(self, request: GenerateRequest, answer_start: AnswerStart) -> None:
        raise NotImplementedError

    def _can_prefill_answer(self, request: GenerateRequest) -> bool:
        return True

    async def _load_model(self) -> str:
        raise NotImplementedError

    async def _stop_model(self) -> None:
        pass


@pytest.fixture
def engine() -> EngineWithoutModel:
    return EngineWithoutModel(EngineSettings("some/model", max_rows=2, max_waiting=2))


@pytest.mark.parametrize("error", [ZeroDivisionError, StopIteration])
async def test_an_encode_job_that_raises_is_logged_and_reported_as_engine_failed(
    error: type[Exception], engine: EngineWithoutModel
) -> None:
    def work() -> None:
        raise error("/some/path")

    with capture_logs() as logs, pytest.raises(EngineFailed) as failure:
        await engine._encode(work)
    assert failure.value.message == "The engine failed on this request."
    assert [entry["exc_info"].args for entry in logs] == [("/some/path",)]


async def test_an_encode_job_that_refuses_the_request_is_not_logged(engine: EngineWithoutModel) -> None:
    def work() -> None:
        raise BadRequest("The prompt is too long.")

    with capture_logs() as logs, pytest.raises(BadRequest, match="too long"):
        await engine._encode(work)
    assert not logs


async def test_a_matcher_that_raises_is_logged_and_reported_as_engine_failed(engine: EngineWithoutModel) -> None:
    class BrokenMatcher:
        def compute_relevance_maps(self, requests: object) -> object:
            raise ZeroDivisionError

    engine.matcher_service.matcher = BrokenMatcher()  # type: ignore[assignment]
    with capture_logs() as logs, pytest.raises(EngineFailed):
        await engine.compute_relevance_map(RelevanceRequest(make_image(0), "a cat"))
    assert logs
    await engine.close()


async def test_an_engine_that_does_not_run_names_its_status(engine: EngineWithoutModel) -> None:
    engine.is_alive = False
    relevance = RelevanceRequest(make_image(0), "a cat")
    with pytest.raises(EngineFailed, match="still being loaded"):
        await engine.compute_relevance_map(relevance)
    with pytest.raises(EngineFailed, match="still being loaded"), engine._reserve_request(GenerateRequest(PROMPT)):
        pass
    with pytest.raises(NotImplementedError):
        await engine.start()
    with pytest.raises(EngineFailed, match="has stopped"):
        await engine.compute_relevance_map(relevance)
    await engine.close()
    with pytest.raises(EngineFailed, match="has stopped"), engine._reserve_request(GenerateRequest(PROMPT)):
        pass


async def test_model_that_fails_on_its_first_request_says_so(
    engine: EngineWithoutModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load() -> str:
        return "cpu"

    async def fail() -> None:
        raise EngineFailed("The engine failed on this request.")

    monkeypatch.setattr(engine, "_load_model", load)
    monkeypatch.setattr(engine, "_warm_up", fail)
    with pytest.raises(EngineFailed, match="lower --cache-gb"):
        await engine.start()
    await engine.close()


def test_requests_that_the_engine_cannot_run_are_refused_before_they_wait(engine: EngineWithoutModel) -> None:
    request = GenerateRequest(PROMPT)
    refused = {
        "grounding_branch 'grounding/blind' is not a branch": request.replace(grounding_branch="grounding/blind"),
        "needs 3 rows; this engine runs 2": request.replace(branches={"a/one": PROMPT, "a/two": PROMPT}),
        "strategy state that was freed": request.replace(states={"vhr": StateHandle("state-0")}),
    }
    for message, each in refused.items():
        with pytest.raises((BadRequest, Unsupported), match=message), engine._reserve_request(each):
            pass
    assert not engine.is_full
    with engine._reserve_request(request.replace(branches={"a/one": PROMPT})) as reservation:
        assert engine.is_full
        reservation.is_running = True
        assert not engine.is_full


def test_forced_prefix_consumes_its_tokens_but_not_the_end_of_an_answer() -> None:
    tokens = [Token(number, "a") for number in range(3)]
    prefix = ForcedPrefix(2)
    assert [prefix.consume(token) for token in tokens] == [True, True, False]
    assert not ForcedPrefix(1).consume(Token(0, "", finish=FinishInfo("length", Usage())))
    assert not ForcedPrefix().consume(tokens[0])
