"""Log-odds of claims from the log-probabilities of yes and no."""

from __future__ import annotations

import math

import pytest

from decoding.claims.claim_probabilities import MAX_LOG_ODDS, compute_log_odds
from decoding.outputs import Answer, FinishInfo, Usage

CUT_OFF = -math.inf


def make_answer(*logprobs: float) -> Answer:
    """Make an answer with the log-probabilities of Yes, yes, No and no."""
    scores = dict(zip(("Yes", "yes", "No", "no"), logprobs, strict=True))
    return Answer("", (), FinishInfo("stop", Usage(), text_logprobs=scores))


def test_log_odds_sum_over_the_spellings() -> None:
    answer = make_answer(*map(math.log, (0.5, 0.1, 0.1, 0.2)))
    assert compute_log_odds(answer) == pytest.approx(math.log(0.6 / 0.3))


def test_log_odds_are_0_if_both_words_are_cut_off() -> None:
    assert compute_log_odds(make_answer(CUT_OFF, CUT_OFF, CUT_OFF, CUT_OFF)) == 0.0


@pytest.mark.parametrize("least", [CUT_OFF, -745.0, -30.0])
def test_log_odds_are_bounded(least: float) -> None:
    assert compute_log_odds(make_answer(-0.1, CUT_OFF, least, CUT_OFF)) == MAX_LOG_ODDS
    assert compute_log_odds(make_answer(CUT_OFF, least, CUT_OFF, -0.1)) == -MAX_LOG_ODDS
