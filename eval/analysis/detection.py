"""How well the check, grounding, log-probability and position tell hallucinated mentions of a caption from real ones.

CHAIR's labels are the truth: a mention is hallucinated if its object is not in the image. Images are resampled, because
mentions of one image are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from eval.analysis.score_table import ScoreTable
from eval.benchmarks.chair.tokenizer import locate_tokens
from eval.core.answer_store import ReceivedClaim, StoredAnswer
from eval.core.delong import delong_test
from eval.core.metrics import Floats, divide_or_nan
from eval.core.results import CalibrationBin, DelongComparison, DetectionResult, Estimate, SignalResult
from eval.core.statistics import Bootstrap, percentile_intervals

CHECK = "check"
GROUNDING = "grounding"
LOGPROB = "log-probability"
POSITION = "position"
COMBINED = "grounding and log-probability"
COMBINED_WITH_POSITION = "grounding, log-probability and position"
COMBINATIONS = {COMBINED: (GROUNDING, LOGPROB), COMBINED_WITH_POSITION: (GROUNDING, LOGPROB, POSITION)}
BINS = 10  # of the calibration


@dataclass(frozen=True)
class LabelledMention:
    """An object that a caption mentions, with the signals that may indicate that it is hallucinated.

    Attributes:
        image: Index of the image.
        is_hallucinated: Whether the image does not have the object.
        signals: Name -> value. A larger value means hallucinated.
    """

    image: int
    is_hallucinated: bool
    signals: Mapping[str, float]


def measure_detection(table: ScoreTable, label: str, draws: Bootstrap) -> DetectionResult | None:
    """Measure the signals of one arm.

    Args:
        table: Answers and scores of a run with `--check`.
        label: Label of the arm.
        draws: Resamples of the images of all samples, in the order of `ScoreTable.list_clusters`.

    Returns:
        The result; None if no mention is hallucinated, or none is real.
    """
    indices = range(len(table.samples))
    images = {image: number for number, image in enumerate(table.list_clusters(indices))}
    mentions: list[LabelledMention] = []
    missed = 0
    for index in indices:
        image = images[table.samples[index].question.cluster]
        found, without_claim = label_mentions(image, table.answers[label][index], table.scores[label][index].detail)
        mentions += found
        missed += without_claim
    return summarize_mentions(label, mentions, missed, draws)


def label_mentions(image: int, answer: StoredAnswer, detail: Mapping[str, object]) -> tuple[list[LabelledMention], int]:
    """Match the mentions of a caption with its claims.

    Args:
        image: Index of the image.
        answer: The caption, with claims and token scores.
        detail: CHAIR's tokens and mentions of the caption.

    Returns:
        The mentions that are claims, and the number of those that are not.
    """
    tokens, rows = detail["tokens"], detail["mentions"]
    assert isinstance(tokens, list)
    assert isinstance(rows, list)
    spans = locate_tokens(answer.text, tokens)
    labelled, missed = [], 0
    for position, (first, last, _, is_real) in enumerate(rows):
        begin, end = spans[first], spans[last]
        claim = None if begin is None or end is None else _find_claim(answer.claims, begin[0], end[1])
        if claim is None or claim.start is None:
            missed += 1
            continue
        signals = {**_read_signals(answer, claim, claim.start), POSITION: float(position)}
        labelled.append(LabelledMention(image, not is_real, signals))
    return labelled, missed


def _find_claim(claims: Sequence[ReceivedClaim], start: int, end: int) -> ReceivedClaim | None:
    """Return the claim that has a character between two offsets of the answer."""
    return next((each for each in claims if (each.start or 0) < end and start < (each.end or 0)), None)


def _read_signals(answer: StoredAnswer, claim: ReceivedClaim, start: int) -> dict[str, float]:
    """Return the signals of a claim: its probability, and grounding and log-probability of its first token."""
    signals = {CHECK: 1 - claim.probability}
    length = 0
    for text, logprob, grounding in answer.token_scores or ():
        length += len(text)
        if length > start:
            signals[LOGPROB] = -logprob
            if grounding is not None:
                signals[GROUNDING] = -grounding
            break
    return signals


def summarize_mentions(
    label: str, mentions: Sequence[LabelledMention], missed: int, draws: Bootstrap
) -> DetectionResult | None:
    """Compute area under the ROC curve, average precision and calibration, with intervals over images.

    Args:
        label: Label of the arm.
        mentions: The mentions.
        missed: Number of mentions that are no claims.
        draws: Resamples of the images.

    Returns:
        The result; None if no mention is hallucinated, or none is real.
    """
    if not mentions or len({mention.is_hallucinated for mention in mentions}) < 2:
        return None
    mentions = add_combination(mentions)
    signal_names = (CHECK, GROUNDING, LOGPROB, POSITION, COMBINED, COMBINED_WITH_POSITION)
    names = [name for name in signal_names if all(name in each.signals for each in mentions)]
    areas = {name: auroc(mentions, name, draws) for name in names}
    signals: dict[str, SignalResult] = {}
    for name in names:
        (check, check_samples), (area, samples) = areas[CHECK], areas[name]
        signals[name] = SignalResult(
            auroc=_estimate(area, samples),
            average_precision=_estimate(*average_precision(mentions, name, draws)),
            check_lead=None if name == CHECK else _estimate(check - area, check_samples - samples),
            delong=None if name == CHECK else _compare_areas(mentions, name),
        )
    return DetectionResult(
        strategy=label,
        mentions=len(mentions),
        hallucinated=sum(mention.is_hallucinated for mention in mentions),
        mentions_without_claim=missed,
        signals=signals,
        calibration_error=_estimate(*calibration_error(mentions, draws)),
        calibration=build_calibration_bins(mentions),
    )


def _compare_areas(mentions: Sequence[LabelledMention], signal: str) -> DelongComparison:
    values, is_positive, _ = _as_arrays(mentions, signal)
    result = delong_test(_as_arrays(mentions, CHECK)[0], values, is_positive)
    return DelongComparison(low=result.low, high=result.high, p=result.p)


def _estimate(value: float, samples: Floats) -> Estimate:
    (interval,) = percentile_intervals(np.array([value]), samples[:, None])
    return Estimate.from_interval(interval)


def add_combination(mentions: Sequence[LabelledMention]) -> list[LabelledMention]:
    """Add mean ranks of grounding, log-probability and position as signals, where all mentions have these."""
    for name, parts in COMBINATIONS.items():
        if all(set(parts) <= mention.signals.keys() for mention in mentions):
            ranks = np.mean([rankdata([mention.signals[part] for mention in mentions]) for part in parts], 0)
            mentions = [
                replace(each, signals={**each.signals, name: float(rank)})
                for each, rank in zip(mentions, ranks, strict=True)
            ]
    return list(mentions)


def auroc(mentions: Sequence[LabelledMention], signal: str, draws: Bootstrap) -> tuple[float, Floats]:
    """Compute the area under the ROC curve of a signal for hallucinated mentions.

    Args:
        mentions: The mentions.
        signal: Name of the signal.
        draws: Resamples of the images.

    Returns:
        The area, and the area in each resample, [resamples].
    """
    count = draws.weights.shape[1]
    values, is_positive, images = _as_arrays(mentions, signal)
    wins, positives, negatives = count_wins_by_image(values, is_positive, images, count)
    weights = np.concatenate([np.ones((1, count)), draws.weights])
    areas = divide_or_nan(((weights @ wins) * weights).sum(1), (weights @ positives) * (weights @ negatives))
    return float(areas[0]), areas[1:]


def count_wins_by_image(
    values: Floats, is_positive: NDArray[np.bool_], images: NDArray[np.int64], count: int
) -> tuple[Floats, Floats, Floats]:
    """Count the pairs of a positive and a negative in which the positive has the larger value. A tie is half a pair.

    Args:
        values: Value of each item, [items].
        is_positive: Whether an item is positive, [items].
        images: Image of each item, [items].
        count: Number of images.

    Returns:
        Wins by image of the positive and of the negative, [images, images], and positives and negatives, [images] each.
    """
    positive, negative = values[is_positive][:, None], values[~is_positive][None, :]
    wins = (positive > negative) + 0.5 * (positive == negative)
    by_image = np.eye(count)[images]
    return (
        by_image[is_positive].T @ wins @ by_image[~is_positive],
        by_image[is_positive].sum(0),
        by_image[~is_positive].sum(0),
    )


def average_precision(mentions: Sequence[LabelledMention], signal: str, draws: Bootstrap) -> tuple[float, Floats]:
    """Compute the average precision of a signal for hallucinated mentions: the area under steps of recall.

    Equal values share one threshold.

    Args:
        mentions: The mentions.
        signal: Name of the signal.
        draws: Resamples of the images.

    Returns:
        The average precision, and that in each resample, [resamples].
    """
    values, is_positive, images = _as_arrays(mentions, signal)
    order = np.argsort(-values, kind="stable")
    values, is_positive, images = values[order], is_positive[order], images[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    weights = np.concatenate([np.ones((1, draws.weights.shape[1])), draws.weights])[:, images]
    found = np.cumsum(weights * is_positive, axis=1)[:, last_of_ties]  # [1 + resamples, thresholds]
    precision = divide_or_nan(found, np.cumsum(weights, axis=1)[:, last_of_ties])
    gained = np.diff(found, axis=1, prepend=0)
    results = divide_or_nan(np.nansum(gained * precision, axis=1), found[:, -1])
    return float(results[0]), results[1:]


def calibration_error(mentions: Sequence[LabelledMention], draws: Bootstrap) -> tuple[float, Floats]:
    """Compute the mean gap between P(yes) and the share of real mentions, over bins of equal width.

    Args:
        mentions: The mentions.
        draws: Resamples of the images.

    Returns:
        The error, and the error in each resample, [resamples].
    """
    values, is_positive, images = _as_arrays(mentions, CHECK)
    gaps = (1 - values) - ~is_positive
    in_bin = np.eye(BINS)[_find_bins(1 - values)]  # [items, bins]
    weights = np.concatenate([np.ones((1, draws.weights.shape[1])), draws.weights])[:, images]
    errors = divide_or_nan(np.abs((weights * gaps) @ in_bin).sum(1), weights.sum(1))
    return float(errors[0]), errors[1:]


def build_calibration_bins(mentions: Sequence[LabelledMention]) -> list[CalibrationBin]:
    """Compare P(yes) with the share of real mentions, for the bins that have a mention."""
    values, is_positive, _ = _as_arrays(mentions, CHECK)
    probabilities = 1 - values
    bins = _find_bins(probabilities)
    return [
        CalibrationBin(
            low=number / BINS,
            high=(number + 1) / BINS,
            mentions=int((bins == number).sum()),
            probability=float(probabilities[bins == number].mean()),
            real=float((~is_positive[bins == number]).mean()),
        )
        for number in range(BINS)
        if (bins == number).any()
    ]


def _find_bins(probabilities: Floats) -> NDArray[np.int64]:
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)


def _as_arrays(mentions: Sequence[LabelledMention], signal: str) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    return (
        np.array([mention.signals[signal] for mention in mentions]),
        np.array([mention.is_hallucinated for mention in mentions]),
        np.array([mention.image for mention in mentions]),
    )
