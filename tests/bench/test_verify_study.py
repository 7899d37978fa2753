"""Tests of the figures of the study of `verify`, on counts and values computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.quality.claim_signals import label_mentions
from bench.quality.verify_report import format_p, format_value
from bench.quality.verify_study import RATIOS, compare_arm, count_mentions
from decoding.outputs import Answer, CheckedClaim, FinishInfo, Token, TokenLogprob, Usage
from eval.analysis.detection import LabelledMention
from eval.benchmarks.chair.object_extraction import build_extractor
from eval.benchmarks.chair.score import CaptionScore
from eval.benchmarks.chair.vocabulary import ObjectVocabulary
from eval.core.statistics import Bootstrap


def score(text: str, *ground_truth: str) -> CaptionScore:
    """Score a caption of a scene with these objects."""
    return CaptionScore(
        1, text, build_extractor("original", ObjectVocabulary.load(None))(text), frozenset(ground_truth)
    )


def test_counts_give_chair_and_recall() -> None:
    counts = count_mentions([score("A dog and a dog with a kite.", "dog", "cat"), score("A cat.", "cat")])
    assert RATIOS.compute(counts.sum(0)) == pytest.approx([1 / 2, 1 / 4, 2 / 3, 1 / 3, 1 / 2])


def test_arm_is_compared_with_plain_decoding() -> None:
    plain = count_mentions([score("A dog and a kite.", "dog"), score("A cat and a kite.", "cat")])
    arm = count_mentions([score("A dog.", "dog"), score("A cat and a kite.", "cat")])
    figures = compare_arm(arm, plain, Bootstrap.draw(2), is_single=True)
    assert figures["chair_i"]["value"] == pytest.approx(100 / 3, abs=1e-3)
    assert figures["chair_i"]["difference"]["value"] == pytest.approx(100 / 3 - 50, abs=1e-3)
    assert figures["chair_i"]["ratio"]["value"] == pytest.approx(2 / 3, abs=1e-3)
    assert figures["chair_s"]["p"] == 1.0  # McNemar with one discordant scene
    assert figures["recall"]["difference"]["value"] == 0


def test_mention_gets_the_signals_of_its_claim_and_first_token() -> None:
    def token(text: str, logprob: float, **fields: object) -> Token:
        chosen = TokenLogprob(1, text, text.encode(), logprob)
        return Token(1, text, chosen, grounding=2 * logprob, **fields)  # type: ignore[arg-type]

    claim = CheckedClaim("kite", 2, 6, "Is there a kite in the image?", 0.25)
    end = token(" and a dog.", -3.0, claims=(claim,), finish=FinishInfo("stop", Usage()))
    tokens = (token("A", -1.0), token(" kite", -2.0), end)
    answer = Answer("A kite and a dog.", tokens, FinishInfo("stop", Usage()))
    labelled, missed = label_mentions(7, answer, score("A kite and a dog.", "dog"))
    expected = {"check": 0.75, "grounding": 4.0, "log-probability": 2.0, "position": 0.0}
    assert labelled == [LabelledMention(7, True, expected)]
    assert missed == 1  # the dog has no claim


def test_report_formats_values_and_p_values() -> None:
    cell = {"value": -1.25, "low": -2.0, "high": 0.04}
    assert format_value(cell, 2, sign=True) == "-1.25 [-2.00, +0.04]"
    assert [format_p(p) for p in (0.0002, 0.001, 0.25)] == ["p < 0.001", "p = 0.001", "p = 0.25"]


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> Any:
    return json.loads((ROOT / "bench" / "results" / "verify_study.json").read_text())


def read_page(name: str) -> str:
    """Return a page on one line, with hyphens for minus signs."""
    return " ".join((ROOT / name).read_text().split()).replace("\N{MINUS SIGN}", "-")


def format_interval(cell: dict[str, float], digits: int, *, sign: bool = False) -> str:
    return f"{cell['value']:{'+' if sign else ''}.{digits}f} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def test_readme_states_the_figures_of_the_study(study: Any) -> None:
    plain, verify, page = study["greedy"]["plain"], study["greedy"]["verify"], read_page("README.md")
    better, worse = verify["images"]["improved"], verify["images"]["worsened"]
    assert f"{better} of {study['scenes']} captions of fresh images name fewer" in page
    assert f"and {worse} name more" in page
    assert f"falls from {plain['chair_i']['value']:.1f} % to {verify['chair_i']['value']:.1f} %" in page
    assert f"recall stays: {plain['recall']['value']:.1f} % and {verify['recall']['value']:.1f} %" in page


def test_results_state_the_figures_of_the_study(study: Any) -> None:
    page = read_page("docs/results.md")
    for part, arm, begin in (
        ("greedy", "verify", "Greedy CHAIR_i"),
        ("greedy", "verify+vhr", "has the fewest hallucinations.** CHAIR_i"),
        ("sampled", "verify", "At temperature 1, CHAIR_i"),
    ):
        figures = study[part][arm]
        ratio = format_interval(figures["chair_i"]["ratio"], 2).replace(" ", " of plain's ", 1)
        recall = format_interval(figures["recall"]["difference"], 1, sign=True)
        assert f"{begin} is {ratio}, and recall changes by {recall}" in page
    images = study["greedy"]["verify"]["images"]
    assert f"{images['improved']} are better and {images['worsened']} are worse" in page
    signals = study["signals"]["signals"]
    assert f"AUROC of {format_interval(signals['check']['auroc'], 3)}" in page
    best_other = max(signal["auroc"]["value"] for name, signal in signals.items() if name != "check")
    assert f"has {best_other:.3f}" in page
    for together, words in (("1", "One caption alone takes"), ("8", "Of eight at once, each takes")):
        assert f"{words} {study['time'][together]['verify']['ratio']:.1f} times" in page
