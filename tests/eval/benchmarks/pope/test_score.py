"""POPE's metrics."""

from __future__ import annotations

import pytest

from eval.benchmarks.pope.parsers import PARSERS
from eval.benchmarks.pope.score import compute_score, is_correct, measure_parser_disagreement

LABELS = ["yes", "no", "yes", "no", "yes", "no"]


def test_metrics_equal_their_definitions() -> None:
    found = compute_score(LABELS, ["yes", "No, none", "no", "Yes.", "", "not there"])
    assert (found.tp, found.fp, found.tn, found.fn) == (2, 1, 2, 1)
    assert found.accuracy == 4 / 6
    assert found.precision == found.recall == 2 / 3
    assert found.f1 == 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)
    assert found.yes_ratio == 0.5
    assert (found.n, found.unparsed, found.notes) == (6, 1, {})


def test_a_division_without_a_value_is_none_with_a_note() -> None:
    found = compute_score(["yes", "no"], ["no", "no"])
    assert (found.precision, found.recall, found.f1) == (None, 0.0, None)
    assert set(found.notes) == {"precision", "f1"}
    assert compute_score(["no"], ["yes"]).recall is None
    assert compute_score(["no"], ["yes"]).precision == 0.0


def test_official_parser_counts_capitalized_labels_as_yes() -> None:
    """A label is a no only if it is exactly `no`, so questions with `No` count as positive."""
    assert compute_score(["No", "NO"], ["yes", "no"]).tp == 1
    assert compute_score(["No", "NO"], ["yes", "no"]).fn == 1


def test_lmms_eval_ignores_unparsed_answers_in_recall() -> None:
    found = compute_score(["yes", "yes", "yes", "no"], ["Yes", "Yes, a cat", "no", "no."], PARSERS["lmms-eval"])
    assert (found.tp, found.fp, found.tn, found.fn) == (1, 0, 0, 1)
    assert (found.recall, found.accuracy, found.unparsed) == (0.5, 0.25, 2)
    assert found.yes_ratio == 0.75  # of the labels


def test_vlmevalkit_counts_unparsed_answers_as_false_negatives() -> None:
    found = compute_score(["yes", "yes", "no"], ["Yes!", "perhaps", "perhaps"], PARSERS["vlmevalkit"])
    assert (found.tp, found.fp, found.tn, found.fn) == (1, 0, 0, 1)
    assert (found.accuracy, found.unparsed) == (1 / 3, 2)


def test_vcd_counts_other_labels_only_in_the_total() -> None:
    found = compute_score(["yes", "maybe"], ["yes", "yes"], PARSERS["vcd"])
    assert (found.tp, found.n, found.accuracy, found.yes_ratio) == (1, 2, 0.5, 0.5)


def test_parser_disagreement_is_a_share() -> None:
    assert measure_parser_disagreement(["yes", "no", "no"], ["yes", "no", "No."]) == 1 / 3
    assert measure_parser_disagreement(["yes", "no"], ["Yes", "No"]) == 0


def test_is_correct_agrees_with_accuracy() -> None:
    answers = ["yes", "No!", "no", "Yes.", "", "snowboard"]
    for parser in PARSERS.values():
        right = [is_correct(label, answer, parser) for label, answer in zip(LABELS, answers, strict=True)]
        assert sum(right) / 6 == compute_score(LABELS, answers, parser).accuracy


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compute_score(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match="nothing"):
        compute_score([], [])
