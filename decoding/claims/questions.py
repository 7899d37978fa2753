"""The question that checks a claim."""

from __future__ import annotations

from decoding.claims.claim_extraction import Claim
from decoding.claims.nouns import with_article

PLACEHOLDER = "{claim}"
DEFAULT_QUESTION = f"Is there {PLACEHOLDER} in the image?"  # POPE's question (arXiv:2305.10355)


def build_question(claim: Claim, template: str = DEFAULT_QUESTION) -> str:
    """Build the question about a claim.

    Args:
        claim: The claim. A plural becomes singular in the question: `two people` are there only if a person is.
        template: The question with `{claim}` in the place of the phrase and its article.

    Returns:
        The question. A noun without an article in the answer, as `rice`, has none in the question. Nouns without a
        singular have one, as in POPE's "a scissors".
    """
    phrase = claim.noun if claim.is_bare else with_article(claim.noun)
    return template.replace(PLACEHOLDER, phrase)
