"""A strategy that ends an answer after some sentences, and avoids words."""

from typing import Annotated

from pydantic import Field

from onlyseen import TEXT_SIDE, DraftProgram, GenerateRequest, ReadDraft, Segment, SendTokens, StartDraft, Strategy

Word = Annotated[str, Field(min_length=1, max_length=40)]


class Brief(Strategy):
    """Send the first sentences of an answer, without some words. Neutral with 0 sentences, which sends them all."""

    name = "brief"
    paper = "none"
    neutral = {"sentences": 0}

    sentences: Annotated[int, Field(ge=0, le=100, description="Sentences that are sent; 0 for all."), TEXT_SIDE] = 2
    avoided: Annotated[
        tuple[Word, ...], Field(max_length=16, description="Words that the answer does not contain."), TEXT_SIDE
    ] = ()

    def stream(self, request: GenerateRequest) -> DraftProgram:
        yield StartDraft()
        accepted: list[int] = []
        ruled_out: tuple[str, ...] = ()
        sent = 0
        while True:
            segment: Segment = yield ReadDraft(until=lambda text: text.endswith("."))
            sentence = "".join(token.text for token in segment.tokens)
            if not ruled_out and any(word in sentence for word in self.avoided):
                ruled_out = self.avoided
                yield StartDraft(tuple(accepted), ruled_out)  # generate the sentence again
                continue
            yield SendTokens(segment.tokens)
            accepted += [token.id for token in segment.tokens]
            sent += 1
            if segment.reason is not None:
                return segment.reason
            if sent == self.sentences:
                return "stop"
