"""What a client is told who asks why a strategy does not run."""

import pytest

from decoding.lacking import lacking


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        (["branches"], "it lacks branches"),
        (["attend"], "it lacks attend: vLLM computes attention in kernels that nothing can reach into"),
        (
            ["probe", "relevance"],
            "it lacks probe, relevance: the server has no image-text matcher; start it with --matcher",
        ),
    ],
)
def test_the_reason_is_told_where_there_is_one(needs: list[str], told: str) -> None:
    assert lacking(needs) == told
