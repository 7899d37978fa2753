"""Answers that a strategy builds itself, without decoding."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.strategy import Strategy
from tests.server.conftest import FakeServer, check_refusal, image_messages
from tests.server.fakes import Blind


async def test_grounding_is_unsupported(server: FakeServer) -> None:
    fields = {"logprobs": True, "decoding": {"grounding": True}, "messages": image_messages()}
    response = await server.chat(model="tiny:vote", **fields)
    check_refusal(response, "decoding.grounding", "unsupported")


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["Yes", "No"]},
        {"min_tokens": 2},
        {"ignore_eos": True},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"7": 1}},
        {"stop_token_ids": [7]},
    ],
)
async def test_field_that_acts_on_decoding_is_unsupported(server: FakeServer, fields: dict[str, Any]) -> None:
    response = await server.chat(model="tiny:vote", **fields)
    (field,) = fields
    check_refusal(response, field, "unsupported")


async def test_neutral_and_sampling_fields_are_accepted(server: FakeServer) -> None:
    """The strategy samples nothing, so temperature and top_p have no effect."""
    fields = {"stop": [], "min_tokens": 1, "ignore_eos": False, "repetition_penalty": 1, "temperature": 0, "top_p": 0.5}
    assert (await server.chat(model="tiny:vote", **fields)).status_code == 200


async def test_strategies_list_marks_votes(server: FakeServer) -> None:
    listed = (await server.http.get("/v1/strategies")).json()["data"]
    assert [entry["name"] for entry in listed if entry["votes"]] == ["vote"]


async def test_receipt_counts_extra_requests_once_for_all_choices(server: FakeServer) -> None:
    one, three = [(await server.chat(model="tiny:vote", n=n)).json() for n in (1, 3)]
    assert len(three["choices"]) == 3
    assert one["onlyseen"]["forward_passes"] == three["onlyseen"]["forward_passes"] == 2 * 5
    assert one["onlyseen"]["steps"] == three["onlyseen"]["steps"]


async def test_failing_estimate_of_copies_names_the_strategy(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Strategy) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(Blind, "count_image_copies", fail)
    response = await server.chat(model="tiny:blind", messages=image_messages())
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    assert "'blind' failed in `count_image_copies`: ZeroDivisionError" in response.json()["error"]["message"]
    assert (await server.chat(messages=image_messages())).status_code == 200
