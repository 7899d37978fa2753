"""Reasons why an engine cannot run a strategy."""

import pytest

from decoding.pipeline.capabilities import describe_missing


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        (["branches"], "it lacks branches"),
        (
            ["edit_attention_scores"],
            "it lacks edit_attention_scores: vLLM computes attention in kernels that do not expose attention scores",
        ),
        (
            ["probe", "relevance"],
            "it lacks probe, relevance: the server has no image-text matcher; start it with --matcher",
        ),
    ],
)
def test_missing_capability_has_a_reason(needs: list[str], text: str) -> None:
    assert describe_missing(needs) == text
