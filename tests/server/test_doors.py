"""Body before suffix before default; the receipt says what ran."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Serve, Served, asked, seeing
from tests.server.fakes import ALL, FakeEngine


@pytest.mark.parametrize(
    ("default", "model", "decoding", "ran"),
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
async def test_precedence(serve: Serve, default: str, model: str, decoding: Any, ran: str) -> None:
    served = await serve(strategy=default)
    response = await served.chat(model=model, decoding=decoding, messages=seeing())
    assert response.json()["onlyseen"]["strategy"] == ran
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
async def test_refusals(served: Served, model: str, decoding: Any, status: int, param: str, code: str | None) -> None:
    response = await served.chat(model=model, decoding=decoding, messages=seeing())
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert not served.engine.asks


async def test_a_strategy_that_the_engine_cannot_run_is_refused_with_the_reason(serve: Serve) -> None:
    served = await serve(FakeEngine(capabilities=ALL - {"heads"}))
    asked = [("tiny:focus", {}, "model"), ("tiny", {"strategy": "blind+focus"}, "decoding.strategy")]
    for model, decoding, param in asked:
        response = await served.chat(model=model, decoding=decoding, messages=seeing())
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported")
        assert "'focus': it lacks heads" in error["message"]
    assert not served.engine.asks


async def test_receipt_states_parameters_branches_and_passes(served: Served) -> None:
    body = {"strategy": "blind+focus", "blind": {"alpha": 2.5}, "grounding": True}
    whole = await served.openai.chat.completions.create(**asked(messages=seeing()), extra_body={"decoding": body})
    assert whole.model_extra is not None
    receipt = whole.model_extra["onlyseen"]
    timings = receipt.pop("timings")
    assert receipt == {
        "strategy": "blind+focus",
        "parameters": {"blind": {"alpha": 2.5}, "focus": {}},
        "branches": ["blind/none", "grounding/blind"],
        "steps": 5,
        "forward_passes": 2 + 3 * 5,  # the probe's two prompts, then three rows a step
        "changed_steps": None,
    }
    assert timings["decode"] == 0.5
    assert timings["total"] >= timings["prepare"] >= 0


async def test_changed_steps_are_counted_where_they_are_known(served: Served) -> None:
    response = await served.chat(n=2)
    assert response.json()["onlyseen"]["changed_steps"] == 4


async def test_a_strategys_own_answer_costs_what_its_questions_cost(served: Served) -> None:
    response = await served.chat(model="tiny:vote+blind", messages=seeing())
    receipt = response.json()["onlyseen"]
    assert response.json()["choices"][0]["message"]["content"] == "A cat on a mat."
    assert (receipt["forward_passes"], receipt["branches"]) == (2 * 2 * 5, [])


async def test_a_strategy_that_needs_a_picture_says_so(served: Served) -> None:
    response = await served.chat(model="tiny:blind", stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


async def test_grounding_needs_a_picture(served: Served) -> None:
    response = await served.chat(decoding={"grounding": True})
    assert response.json()["error"]["param"] == "decoding.grounding"


async def test_what_strategies_kept_is_freed(served: Served) -> None:
    for stream in (False, True):
        assert (await served.chat(model="tiny:focus", messages=seeing(), stream=stream)).status_code == 200
        assert not served.engine.kept
