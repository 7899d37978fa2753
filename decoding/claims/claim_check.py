"""Check the claims of an answer without changing it: `"decoding": {"check": true}`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from decoding.claims.claim_extraction import find_claims_after
from decoding.claims.claim_probabilities import ClaimProbabilities, count_copies
from decoding.claims.options import DEFAULT_DEBIAS, DEFAULT_VIEWS, Debias, Language, Question, Views
from decoding.claims.questions import DEFAULT_QUESTION
from decoding.claims.sentences import completes_sentence, find_sentence_end
from decoding.drafts import DraftEffect, DraftProgram, ReadDraft, Segment, SendTokens, StartDraft, join_text
from decoding.errors import BadRequest
from decoding.outputs import CheckedClaim
from decoding.requests import GenerateRequest
from decoding.strategy import Strategy


class ClaimCheck(Strategy):
    """Check each thing that the answer names with a question to the model, sentence by sentence.

    It is outside the stack of a request. The tokens are those of the stack. Those of a sentence are sent as they come,
    and the next sentence waits for the checks of this one.
    """

    name = "check"
    paper = "none"

    views: Views = DEFAULT_VIEWS
    debias: Debias = DEFAULT_DEBIAS
    question: Question = DEFAULT_QUESTION
    language: Language = "en"

    def count_image_copies(self) -> int:
        """Count the shifted copies that questions are about."""
        return count_copies(self.views)

    def stream(self, request: GenerateRequest) -> DraftProgram:
        """Send the answer, and the claims of each sentence when it is complete.

        Yields:
            One draft, checks and claims.

        Returns:
            The finish reason.

        Raises:
            BadRequest: The prompt has no image.
        """
        if not request.prompt.images:
            raise BadRequest("decoding.check needs an image: add an image_url part.", param="decoding.check")
        probabilities, text, start = ClaimProbabilities(request.prompt, self.question, self.debias, self.views), "", 0
        yield StartDraft()
        reason = None
        while reason is None:
            segment: Segment = yield ReadDraft(completes_sentence(text, start), send=True)
            text, reason = text + join_text(segment.tokens), segment.reason
            while (end := find_sentence_end(text, start)) is not None:
                yield from self._report(probabilities, text[:end], start)
                start = end
        yield from self._report(probabilities, text, start)
        return reason

    def _report(self, probabilities: ClaimProbabilities, text: str, start: int) -> Generator[DraftEffect, Any, None]:
        """Check and send the claims of a sentence, which begins at an offset of the text and ends with it."""
        claims = find_claims_after(text, start)
        yield from probabilities.compute(claims)
        if claims:
            yield SendTokens(
                claims=tuple(
                    CheckedClaim(
                        claim.text,
                        claim.start,
                        claim.end,
                        probabilities.build_question(claim),
                        probabilities.get_probability(claim),
                    )
                    for claim in claims
                )
            )
