"""The score s = ln p(yes) - ln p(no) of an answer, from the log-probabilities that a server lists."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, FiniteFloat

TOP_LOGPROBS = 20  # the most that OpenAI's API lists
UNLIKELY = -9999.0  # OpenAI's log-probability of a token without one


class ListedTokens(NamedTuple):
    """One generated token, and the likeliest tokens at its position with their log-probabilities."""

    token: str
    top: Sequence[tuple[str, float]]


class YesScore(BaseModel):
    """The score of an answer.

    Attributes:
        value: ln p(yes) - ln p(no), or its bound if one word is not listed. None if both are not.
        kind: Whether the value is the score, a lower bound, an upper bound, or missing.
        skipped: Number of tokens without letters before the token that is scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: FiniteFloat | None = None
    kind: Literal["exact", "at least", "at most", "missing"]
    skipped: int = 0


def compute_yes_score(positions: Sequence[ListedTokens]) -> YesScore:
    """Compute the score at the first token that has letters.

    p(yes) is the sum over all listed tokens that are `yes` in lower case and without other characters than letters. A
    word that is not listed is less likely than every listed token, which bounds the score.

    Args:
        positions: The generated tokens.

    Returns:
        The score, missing if no token has letters or neither word is listed.
    """
    for skipped, position in enumerate(positions):
        if _keep_letters(position.token):
            return _score_position(position.top, skipped)
    return YesScore(kind="missing", skipped=len(positions))


def _score_position(top: Sequence[tuple[str, float]], skipped: int) -> YesScore:
    listed = [(_keep_letters(token), logprob) for token, logprob in top if logprob > UNLIKELY]
    yes, no = (_sum_logprobs([logprob for word, logprob in listed if word == wanted]) for wanted in ("yes", "no"))
    least = min((logprob for _, logprob in listed), default=math.nan)
    if yes is not None and no is not None:
        return YesScore(value=yes - no, kind="exact", skipped=skipped)
    if yes is not None:
        return YesScore(value=yes - least, kind="at least", skipped=skipped)
    if no is not None:
        return YesScore(value=least - no, kind="at most", skipped=skipped)
    return YesScore(kind="missing", skipped=skipped)


def _keep_letters(token: str) -> str:
    return "".join(char for char in token if unicodedata.category(char).startswith("L")).lower()


def _sum_logprobs(logprobs: Sequence[float]) -> float | None:
    """Return the logarithm of the sum of probabilities, None without any."""
    if not logprobs:
        return None
    largest = max(logprobs)
    return largest + math.log(sum(math.exp(logprob - largest) for logprob in logprobs))
