"""A strategy that ends an answer after some sentences."""

from typing import Annotated

from pydantic import Field

from onlyseen import TEXT_SIDE, DraftProgram, GenerateRequest, ReadDraft, Segment, SendTokens, StartDraft, Strategy


class Brief(Strategy):
    """Send the first sentences of an answer. Neutral with 0, which sends them all."""

    name = "brief"
    paper = "none"
    neutral = {"sentences": 0}

    sentences: Annotated[int, Field(ge=0, le=100, description="Sentences that are sent; 0 for all."), TEXT_SIDE] = 2

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield StartDraft()
        sent = 0
        while True:
            segment: Segment = yield ReadDraft(until=lambda text: text.endswith("."))
            yield SendTokens(segment.tokens)
            sent += 1
            if segment.reason is not None:
                return segment.reason
            if sent == self.sentences:
                return "stop"
