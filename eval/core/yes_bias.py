"""Statistics of the yes-bias control: plain decoding whose yes is moved by a constant.

A contrast with a branch that ignores image and question adds a constant to the score s = ln p(yes) - ln p(no). So a
gain that plain decoding has at another threshold of s needs no strategy. No label is used to find the threshold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from eval.core.metrics import Floats, divide_or_nan

SEED = 0  # of the hashes that settle ties
STEP_WIDTH = 1e-8  # of a step in the expected number of sampled yes
RESAMPLES_AT_ONCE = 100  # bounds the memory of the area under the ROC curve


class MatchedThreshold(NamedTuple):
    """The threshold that gives a number of yes.

    Attributes:
        threshold: Scores above it are yes. Infinite if all questions are no (+) or yes (-).
        shares: Share of yes of each question, shape [questions]: 1 above the threshold, 0 below. Questions that tie at
            the threshold share the places that are left.
    """

    threshold: float
    shares: Floats


def match_yes_count(scores: Sequence[float] | Floats, count: int) -> MatchedThreshold:
    """Find the threshold under which `count` questions are yes.

    Args:
        scores: Score of each question, shape [questions].
        count: Number of yes, from 0 to the number of questions.

    Returns:
        The threshold, midway between the last yes and the first no, and the shares of yes.
    """
    values = np.asarray(scores, float)
    if count == 0:
        return MatchedThreshold(math.inf, np.zeros(len(values)))
    if count == len(values):
        return MatchedThreshold(-math.inf, np.ones(len(values)))
    descending = np.sort(values)[::-1]
    last_yes, first_no = descending[count - 1], descending[count]
    if last_yes > first_no:
        threshold = float(last_yes + first_no) / 2
        return MatchedThreshold(threshold, (values >= last_yes).astype(float))
    above, tied = values > last_yes, values == last_yes
    shares = np.where(above, 1.0, np.where(tied, (count - above.sum()) / tied.sum(), 0.0))
    return MatchedThreshold(float(last_yes), shares)


def settle_ties(shares: Floats, ids: Sequence[str], count: int, seed: int = SEED) -> NDArray[np.bool_]:
    """Decide the questions that tie at the threshold by a hash of seed and id.

    Args:
        shares: Share of yes of each question, shape [questions].
        ids: Id of each question.
        count: Number of yes.
        seed: Seed of the hashes.

    Returns:
        Whether each question is yes, shape [questions]. `count` of them are.
    """
    digests = [hashlib.sha256(f"{seed}|{each}".encode()).hexdigest() for each in ids]
    order = sorted(range(len(ids)), key=lambda index: (-shares[index], digests[index]))
    settled = np.zeros(len(ids), bool)
    settled[order[:count]] = True
    return settled


class SampledDecoding(NamedTuple):
    """Sampling between the words yes and no.

    Attributes:
        temperature: The temperature, above 0.
        cut: Beta of a plausibility cut, which removes a word with less than this share of the probability of the other
            one. It acts before the temperature. 0 is no cut.
        top_p: The smallest set of words with this probability is sampled from.
    """

    temperature: float
    cut: float = 0.0
    top_p: float = 1.0

    def compute_yes_shares(self, scores: Floats) -> Floats:
        """Compute the probability of the answer yes.

        Args:
            scores: Score of each question, shape [questions].

        Returns:
            Shape [questions].
        """
        shares = expit(scores / self.temperature)
        is_certain = (np.exp(-np.abs(scores)) < self.cut) | (np.maximum(shares, 1 - shares) >= self.top_p)
        return np.where(is_certain, scores > 0, shares)

    def match_yes_count(self, scores: Floats, count: float) -> MatchedThreshold:
        """Find the threshold under which an expected number of questions are yes.

        Under a cut the expected number has steps. Questions at the step that passes `count` share what is left.

        Args:
            scores: Score of each question, shape [questions].
            count: Expected number of yes.

        Returns:
            The threshold, which is subtracted from every score, and the probability of yes of each question.
        """
        if count <= 0:
            return MatchedThreshold(math.inf, np.zeros(len(scores)))
        if count >= len(scores):
            return MatchedThreshold(-math.inf, np.ones(len(scores)))

        def excess(threshold: float) -> float:
            return float(self.compute_yes_shares(scores - threshold).sum()) - count

        bound = float(np.abs(scores).max()) + 40 * self.temperature + 40
        threshold = float(brentq(excess, -bound, bound, xtol=STEP_WIDTH / 10))
        fewer, more = (self.compute_yes_shares(scores - threshold - side * STEP_WIDTH) for side in (1, -1))
        change = more.sum() - fewer.sum()
        return MatchedThreshold(threshold, fewer + (more - fewer) * (count - fewer.sum()) / change if change else more)


def weighted_auroc(scores: Floats, is_yes: NDArray[np.bool_], weights: Floats, images: NDArray[np.int64]) -> Floats:
    """Compute the probability that a question with the label yes has a larger score than one with the label no.

    Equal scores count half.

    Args:
        scores: Score of each question, shape [questions].
        is_yes: Whether the label of each question is yes, shape [questions].
        weights: How often each image occurs, shape [samples, images].
        images: Index of the image of each question, shape [questions].

    Returns:
        The area under the ROC curve in each sample, shape [samples], nan without a question of each label.
    """
    order = np.argsort(scores, kind="stable")
    first_of_ties = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    areas = [np.empty(0)]
    for start in range(0, len(weights), RESAMPLES_AT_ONCE):
        part = weights[start : start + RESAMPLES_AT_ONCE, images[order]]
        positives = np.add.reduceat(part * is_yes[order], first_of_ties, axis=1)  # [samples, distinct scores]
        negatives = np.add.reduceat(part * ~is_yes[order], first_of_ties, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives
        wins = (positives * (below + negatives / 2)).sum(1)
        areas.append(divide_or_nan(wins, positives.sum(1) * negatives.sum(1)))
    return np.concatenate(areas)
