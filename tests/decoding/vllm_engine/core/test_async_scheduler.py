"""Requests with tokens in flight."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

PROMPT, MOST = 10, 3


def build_request(sampled: int, in_flight: int, **changes: Any) -> Any:
    """Build a request that has sampled some tokens, the last ones in steps that are not processed."""
    fields = {
        "num_prompt_tokens": PROMPT,
        "max_tokens": MOST,
        "num_computed_tokens": PROMPT + sampled - 1,
        "num_output_placeholders": in_flight,
    }
    return SimpleNamespace(**fields | changes)


@pytest.mark.filterwarnings("default")
def test_request_runs_no_further_when_its_last_token_is_in_flight() -> None:
    from decoding.vllm_engine.core.scheduler import has_last_token_in_flight

    assert [has_last_token_in_flight(build_request(sampled, 1)) for sampled in (1, 2, 3)] == [False, False, True]
    assert not has_last_token_in_flight(build_request(2, 0))  # its next token is the last one
    # A branch may have a token more, so that it never ends before the main row.
    assert not has_last_token_in_flight(build_request(3, 1, max_tokens=MOST + 1))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("stale", "is_dropped", "waits"), [(1, False, True), (1, True, False), (0, False, False)])
def test_preempted_request_waits_for_tokens_that_it_still_receives(stale: int, is_dropped: bool, waits: bool) -> None:
    from decoding.vllm_engine.core.scheduler import waits_for_output

    assert waits_for_output(SimpleNamespace(num_stale_output_tokens=stale, drop_stale_output=is_dropped)) is waits
