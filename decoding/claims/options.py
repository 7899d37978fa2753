"""Options that `check` and `verify` share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from decoding.claims.claim_probabilities import VIEWS
from decoding.claims.questions import PLACEHOLDER
from decoding.strategy import TEXT_SIDE

SPECIAL_TOKEN_BRACKETS = ("<", ">", "[", "]")
MAX_QUESTION = 500  # characters


def validate_question_template(template: str) -> str:
    """Check that a template has one place for the claim, and no special token of a model.

    Returns:
        The template.

    Raises:
        ValueError: The template does not contain `{claim}` exactly once, or contains a bracket.
    """
    if template.count(PLACEHOLDER) != 1:
        raise ValueError(f"must contain {PLACEHOLDER} once, in the place of the phrase and its article")
    if any(bracket in template for bracket in SPECIAL_TOKEN_BRACKETS):
        raise ValueError(f"must not contain any of {' '.join(SPECIAL_TOKEN_BRACKETS)}, which special tokens contain")
    return template


Debias = Annotated[
    float,
    Field(ge=0, le=1, description="Share of the log-odds without the image that is subtracted from those with it."),
    TEXT_SIDE,
]
Views = Annotated[
    int,
    Field(
        ge=0,
        le=len(VIEWS),
        description="Most views of the image that a question is about: a slightly shifted copy, the image itself, and "
        "another shifted copy. The log-odds are averaged over the views. The next view is left out where the mean is "
        "sure: above 0.993 or below 0.007. 0: the image itself only.",
    ),
    TEXT_SIDE,
]
Question = Annotated[
    str,
    Field(
        max_length=MAX_QUESTION,
        description=f"Question about a claim, with {PLACEHOLDER} for the phrase and its article.",
    ),
    AfterValidator(validate_question_template),
    TEXT_SIDE,
]
Language = Annotated[
    Literal["en"],
    Field(description="Language of the answer. Text in another language has no claims."),
    TEXT_SIDE,
]
DEFAULT_DEBIAS = 0.0
DEFAULT_VIEWS = 3
