"""Tango's score interval for the difference of two paired proportions.

A bootstrap of two strategies that answer every question alike gives the interval [0, 0], as if the true difference were
known. The score interval is right there: its width depends on the number of questions. It is also close to its nominal
coverage where few questions differ.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm

TOLERANCE = 1e-12


def tango_interval(gained: int, lost: int, questions: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the score interval of the difference of two accuracies on the same questions.

    Args:
        gained: Number of questions that only the strategy answers correctly.
        lost: Number of questions that only the reference answers correctly.
        questions: Number of questions, those included that both answer alike.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        Lower and upper bound of the accuracy of the strategy minus that of the reference, between -1 and 1.

    Raises:
        ValueError: The counts are negative, or there are fewer questions than differ, or none.

    Source:
        Tango 1998.
    """
    if gained < 0 or lost < 0 or questions < max(1, gained + lost):
        raise ValueError(f"{gained} questions gained and {lost} lost of {questions} are no counts")
    critical = float(norm.ppf((1 + confidence) / 2))
    observed = (gained - lost) / questions

    def find_bound(sign: int) -> float:
        """Find the difference that lies `critical` standard errors above (1) or below (-1) the observed one."""
        end = sign * (1 - TOLERANCE)
        if sign * observed >= sign * end or abs(_score(gained, lost, questions, end)) < critical:
            return float(sign)
        return float(brentq(lambda d: _score(gained, lost, questions, d) + sign * critical, observed, end))

    return find_bound(-1), find_bound(1)


def _score(gained: int, lost: int, questions: int, difference: float) -> float:
    """Compute the score statistic: the distance of a difference from the observed one, in standard errors."""
    distance = gained - lost - questions * difference
    linear = (2 * questions - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    # The probability that only the reference is correct, at its maximum likelihood under this difference.
    only_reference = (math.sqrt(max(linear**2 - 8 * questions * constant, 0.0)) - linear) / (4 * questions)
    variance = questions * (2 * only_reference + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if abs(distance) < TOLERANCE * questions else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)
