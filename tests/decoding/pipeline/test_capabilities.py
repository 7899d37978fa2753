"""Reasons why an engine cannot run a strategy."""

import pytest

from decoding.errors import Unsupported
from decoding.pipeline.capabilities import describe_missing, require_hooks
from tests.decoding.hf_engine.harness import build_stack


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        (["branches"], "it lacks branches"),
        (
            ["keep_image_tokens"],
            "it lacks keep_image_tokens: the transformers engine drops image tokens inside LLaVA models only",
        ),
        (
            ["probe", "relevance"],
            "it lacks probe, relevance: the server has no image-text matcher; start it with --matcher",
        ),
    ],
)
def test_missing_capability_has_a_reason(needs: list[str], text: str) -> None:
    assert describe_missing(needs) == text


def test_engine_gives_a_reason_for_several_capabilities_once() -> None:
    reasons = dict.fromkeys(("head_scales", "probe"), "no heads")
    assert describe_missing(["branches", "head_scales", "probe"], reasons) == (
        "it lacks branches, head_scales, probe: no heads"
    )
    with pytest.raises(Unsupported, match="cannot run 'vhr': it lacks head_scales: no heads"):
        require_hooks(build_stack("vhr"), frozenset({"update_state"}), reasons)
