"""Metrics that several benchmarks share under their own names: hallucinations of captions, and lengths of answers."""

from __future__ import annotations

from collections.abc import Mapping

from eval.core.metrics import Metric

ALL: Mapping[str, float] = {"n": 1.0}
MAX_LENGTH_CHANGE = 0.15  # relative to plain decoding


def build_caption_rate(name: str, title: str) -> Metric:
    """Build the share of captions that mention an absent object. Such a caption counts as `bad`."""
    meaning = "share of captions that mention an absent object"
    return Metric(name, title, {"bad": 1}, ALL, better="lower", per_question=True, primary=True, meaning=meaning)


def build_mention_rate(name: str, title: str, hallucinated: str, mentions: str) -> Metric:
    """Build the share of mentions whose object is absent.

    Args:
        name: Key of the metric.
        title: Name in reports.
        hallucinated: Count of the mentions of absent objects.
        mentions: Count of all mentions.

    Returns:
        The metric.
    """
    meaning = "share of mentions whose object is absent"
    return Metric(name, title, {hallucinated: 1}, {mentions: 1}, better="lower", primary=True, meaning=meaning)


def build_length(name: str, title: str, count: str, meaning: str) -> Metric:
    """Build the mean length of answers.

    Args:
        name: Key of the metric.
        title: Name in reports.
        count: Count of the units of an answer.
        meaning: The value in words.

    Returns:
        The metric. Reports warn of a change by more than `MAX_LENGTH_CHANGE`.
    """
    return Metric(
        name,
        title,
        {count: 1},
        ALL,
        better="neither",
        percent=False,
        max_relative_change=MAX_LENGTH_CHANGE,
        meaning=meaning,
    )
