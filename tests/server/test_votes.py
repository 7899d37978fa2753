"""Answers that a strategy comes to by itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Served, seeing


async def test_their_grounding_is_not_promised(served: Served) -> None:
    fields = {"logprobs": True, "decoding": {"grounding": True}, "messages": seeing()}
    response = await served.chat(model="tiny:vote", **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "decoding.grounding", "unsupported")


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["Yes", "No"]},
        {"min_tokens": 2},
        {"ignore_eos": True},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
    ],
)
async def test_what_asks_something_of_tokens_that_are_not_generated_is_refused(
    served: Served, fields: dict[str, Any]
) -> None:
    response = await served.chat(model="tiny:vote", **fields)
    error = response.json()["error"]
    (field,) = fields
    assert (response.status_code, error["param"], error["code"]) == (400, field, "unsupported")


async def test_what_changes_nothing_is_taken(served: Served) -> None:
    """Nothing is drawn, so what is said of drawing is kept, too."""
    fields = {"stop": [], "min_tokens": 1, "ignore_eos": False, "repetition_penalty": 1, "temperature": 0, "top_p": 0.5}
    assert (await served.chat(model="tiny:vote", **fields)).status_code == 200


async def test_the_list_of_strategies_tells_who_votes(served: Served) -> None:
    listed = (await served.http.get("/v1/strategies")).json()["data"]
    assert [entry["name"] for entry in listed if entry["votes"]] == ["vote"]


async def test_what_they_cost_is_told_once_for_all_choices(served: Served) -> None:
    one, three = [(await served.chat(model="tiny:vote", n=n)).json() for n in (1, 3)]
    assert len(three["choices"]) == 3
    assert one["onlyseen"]["forward_passes"] == three["onlyseen"]["forward_passes"] == 2 * 5
    assert one["onlyseen"]["steps"] == three["onlyseen"]["steps"]
