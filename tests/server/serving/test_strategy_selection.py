"""Strategy selection by body, model suffix and server default."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.claims.claim_check import ClaimCheck
from decoding.pipeline import dry_run
from decoding.requests import GenerateRequest
from decoding.strategies.agla import AGLA
from decoding.strategies.mvp import MVP
from decoding.strategies.vcd import VCD
from decoding.strategies.verify import Verify
from decoding.strategies.vhr import VHR
from decoding.strategies.zoomeye import ZoomEye
from decoding.strategy import Program, Strategy
from server.serving.strategy_selection import estimate_rows, try_dry_run
from tests.server.conftest import FakeServer, StartServer, image_messages
from tests.server.fakes import ALL_CAPABILITIES, FakeEngine


@pytest.mark.parametrize(
    ("default", "model", "decoding", "expected"),
    [
        ("plain", "tiny", None, "plain"),
        ("blind", "tiny", None, "blind"),
        ("blind", "tiny", {"grounding": False}, "blind"),
        ("blind", "tiny:focus", None, "focus"),
        ("blind", "tiny:focus+blind", {}, "focus+blind"),
        ("blind", "tiny", {"strategy": "focus"}, "focus"),
        ("blind", "tiny", {"strategy": "plain"}, "plain"),
        ("plain", "tiny:blind", {"strategy": "blind"}, "blind"),
        ("plain", "tiny:blind", {"blind": {"alpha": 3.0}}, "blind"),
    ],
)
async def test_body_precedes_suffix_precedes_default(
    start_server: StartServer, default: str, model: str, decoding: Any, expected: str
) -> None:
    server = await start_server(strategy=default)
    response = await server.chat(model=model, decoding=decoding, messages=image_messages())
    assert response.json()["onlyseen"]["strategy"] == expected
    assert response.json()["model"] == model


@pytest.mark.parametrize(
    ("model", "decoding", "status", "param", "code"),
    [
        ("tiny:blind", {"strategy": "focus"}, 400, "decoding.strategy", None),
        ("tiny:blind+focus", {"strategy": "focus+blind"}, 400, "decoding.strategy", None),
        ("tiny:nonsense", None, 404, "model", "model_not_found"),
        ("tiny:", None, 404, "model", "model_not_found"),
        ("tiny:blind+", None, 404, "model", "model_not_found"),
        ("tiny:blind+blind", None, 404, "model", "model_not_found"),
        ("gpt-4o", None, 404, "model", "model_not_found"),
        ("", None, 404, "model", "model_not_found"),
        ("tiny", {"strategy": "nonsense"}, 400, "decoding.strategy", None),
        ("tiny", {"strategy": ""}, 400, "decoding.strategy", None),
        ("tiny", {"strategy": "blind+blind"}, 400, "decoding.strategy", None),
        ("tiny", {"strategy": 3}, 400, "decoding.strategy", None),
        ("tiny", {"strategy": "blind", "alpha": 1.0}, 400, "decoding.alpha", None),
        ("tiny", {"strategy": "blind", "blind": {"beta": 1.0}}, 400, "decoding.blind.beta", None),
        ("tiny", {"strategy": "blind", "blind": {"alpha": "x"}}, 400, "decoding.blind.alpha", None),
        ("tiny", {"strategy": "blind", "blind": 1}, 400, "decoding.blind", None),
        ("tiny", {"blind": {"alpha": 1.0}}, 400, "decoding.blind", None),
        ("tiny", {"grounding": "yes"}, 400, "decoding.grounding", None),
        ("tiny", [], 400, "decoding", None),
    ],
)
async def test_invalid_selection_is_refused(
    server: FakeServer, model: str, decoding: Any, status: int, param: str, code: str | None
) -> None:
    response = await server.chat(model=model, decoding=decoding, messages=image_messages())
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert not server.engine.requests


async def test_unsupported_strategy_is_refused_with_reason(start_server: StartServer) -> None:
    server = await start_server(FakeEngine(capabilities=ALL_CAPABILITIES - {"head_scales"}))
    selections = [("tiny:focus", {}, "model"), ("tiny", {"strategy": "blind+focus"}, "decoding.strategy")]
    for model, decoding, param in selections:
        response = await server.chat(model=model, decoding=decoding, messages=image_messages())
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported")
        assert "'focus': it lacks head_scales" in error["message"]
    assert not server.engine.requests


async def test_strategy_that_needs_an_image_refuses_text(server: FakeServer) -> None:
    response = await server.chat(model="tiny:blind", stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


async def test_grounding_needs_an_image(server: FakeServer) -> None:
    response = await server.chat(decoding={"grounding": True})
    assert response.json()["error"]["param"] == "decoding.grounding"


async def test_strategy_states_are_freed(server: FakeServer) -> None:
    for stream in (False, True):
        assert (await server.chat(model="tiny:focus", messages=image_messages(), stream=stream)).status_code == 200
        assert not server.engine.stored_states


@pytest.mark.parametrize(
    ("stack", "options", "rows"),
    [
        ((), {}, 1),
        ((), {"choices": 3}, 3),
        ((), {"choices": 2, "grounding": True}, 4),
        ((VCD(),), {"choices": 2}, 4),
        ((AGLA(), VCD()), {}, 3),
        ((VHR(),), {}, 2),  # both prompts of the probe
        ((MVP(),), {}, 9),
        ((MVP(),), {"choices": 2}, 9),  # the votes are taken once for all choices
        ((MVP(paths=5),), {}, 15),
        ((MVP(), VCD()), {}, 18),
        ((Verify(),), {"choices": 2}, 4),  # a draft and a question for each choice
        ((ClaimCheck(), VCD()), {}, 4),
        ((VCD(),), {"choices": 8, "rows_at_once": 5}, 4),  # two choices at a time
        ((AGLA(), VCD()), {"choices": 8, "rows_at_once": 2}, 3),  # one choice always runs
        ((ZoomEye(),), {}, 8),
        ((ZoomEye(cues="a," * 2_000),), {}, 8),  # too many requests for a dry run: as with the default parameters
    ],
)
def test_rows_are_estimated_from_the_parameters(
    stack: tuple[Strategy, ...], options: dict[str, Any], rows: int
) -> None:
    assert estimate_rows(stack, **{"choices": 1, **options}) == rows


def test_dry_runs_are_not_shared_between_cache_salts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a request would reveal which parameters another API key has sent."""
    runs = []
    try_dry_run.cache_clear()
    monkeypatch.setattr(dry_run, "dry_run", lambda strategy, _: runs.append(strategy))
    stack = (MVP(paths=5),)
    for salt in ("first", "second", "second"):
        estimate_rows(stack, choices=1, cache_salt=salt)
    assert runs.count(stack[0]) == 2
    assert len(runs) == 3, "default parameters run once for all"
    try_dry_run.cache_clear()


def test_rows_of_a_strategy_whose_dry_run_fails_count_as_one() -> None:
    class Failing(Strategy):
        name = "failing"
        paper = "none"

        def run(self, request: GenerateRequest) -> Program:
            raise ZeroDivisionError

    assert estimate_rows((Failing(), VCD()), choices=1) == 2
