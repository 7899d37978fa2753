"""Answers that a strategy comes to by itself."""

from __future__ import annotations

from tests.server.conftest import Served, seeing


async def test_their_grounding_is_not_promised(served: Served) -> None:
    fields = {"logprobs": True, "decoding": {"grounding": True}, "messages": seeing()}
    response = await served.chat(model="tiny:vote", **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "decoding.grounding", "unsupported")


async def test_what_they_cost_is_told_once_for_all_choices(served: Served) -> None:
    one, three = [(await served.chat(model="tiny:vote", n=n)).json() for n in (1, 3)]
    assert len(three["choices"]) == 3
    assert one["onlyseen"]["forward_passes"] == three["onlyseen"]["forward_passes"] == 2 * 5
    assert one["onlyseen"]["steps"] == three["onlyseen"]["steps"]
