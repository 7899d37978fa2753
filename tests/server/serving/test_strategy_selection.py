"""Strategy selection by body, model suffix and server default."""

from __future__ import annotations

from typing import Any

import pytest

from eval.runs.stack_spec import StackSpec
from server.serving.strategy_selection import _parse_settings
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
    ("model", "decoding", "alpha"),
    [
        ("tiny:blind:alpha=3", {}, 3.0),
        ("tiny:blind:alpha=0.5", {"strategy": "blind"}, 0.5),
        ("tiny:blind:blind.alpha=0.5", {}, 0.5),
        ("tiny:focus+blind:blind.alpha=2.5", {"strategy": "focus+blind"}, 2.5),
        ("tiny:blind:alpha=2", {"blind": {"alpha": 2.0}}, 2.0),
        ("tiny:blind", {"blind": {"alpha": 3.0}}, 3.0),
    ],
)
async def test_suffix_sets_parameters(server: FakeServer, model: str, decoding: Any, alpha: float) -> None:
    response = await server.chat(model=model, decoding=decoding, messages=image_messages())
    assert response.json()["onlyseen"]["parameters"]["blind"]["alpha"] == alpha
    assert response.json()["model"] == model


@pytest.mark.parametrize(
    ("settings", "parsed"),
    [
        ("alpha=1,text=a b", {"agla": {"alpha": 1, "text": "a b"}}),
        ('layers=[2,4],words={"a":1}', {"agla": {"layers": [2, 4], "words": {"a": 1}}}),
        ('text="1,2",alpha=null', {"agla": {"text": "1,2", "alpha": None}}),
        ("alpha=NaN", {"agla": {"alpha": "NaN"}}),
    ],
)
def test_settings_are_json_or_plain_words(settings: str, parsed: Any) -> None:
    assert _parse_settings(settings, ["agla"]) == parsed


@pytest.mark.parametrize(
    "parameters",
    [
        {"agla": {"alpha": 1, "beta": 0.5}},
        {"agla": {"cues": "a, b", "mode": "soft", "on": True, "none": None}},
        {"agla": {"layers": [2, 4], "table": {"a": [1, {"b": 'c"]'}]}}, "vhr": {"text": "1", "empty": ""}},
    ],
)
def test_labels_of_the_evaluation_are_suffixes(parameters: dict[str, dict[str, Any]]) -> None:
    names, _, settings = StackSpec(stack=tuple(parameters), parameters=parameters).label.partition(":")
    assert _parse_settings(settings, names.split("+")) == parameters


@pytest.mark.parametrize(
    ("model", "decoding", "status", "param", "code"),
    [
        ("tiny:blind", {"strategy": "focus"}, 400, "decoding.strategy", None),
        ("tiny:blind+focus", {"strategy": "focus+blind"}, 400, "decoding.strategy", None),
        ("tiny:nonsense", None, 404, "model", "model_not_found"),
        ("tiny:", None, 404, "model", "model_not_found"),
        ("tiny:blind+", None, 404, "model", "model_not_found"),
        ("tiny:blind+blind", None, 404, "model", "model_not_found"),
        ("tiny:blind:", None, 404, "model", "model_not_found"),
        ("tiny:blind:alpha", None, 404, "model", "model_not_found"),
        ("tiny:blind:beta=1", None, 404, "model", "model_not_found"),
        ("tiny:blind:alpha=x", None, 404, "model", "model_not_found"),
        ("tiny:blind:alpha=NaN", None, 404, "model", "model_not_found"),
        ("tiny:blind:alpha=1,alpha=2", None, 404, "model", "model_not_found"),
        ("tiny:blind:focus.alpha=1", None, 404, "model", "model_not_found"),
        ("tiny:blind+focus:alpha=1", None, 404, "model", "model_not_found"),
        ("tiny:blind:alpha=" + "[" * 400, None, 404, "model", "model_not_found"),
        ("tiny:blind:alpha=1", {"blind": {"alpha": 2.0}}, 400, "decoding.blind.alpha", None),
        ("tiny:blind:alpha=1", {"blind": 1}, 400, "decoding.blind", None),
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
