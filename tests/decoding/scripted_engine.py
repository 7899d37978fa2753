"""An engine without a model whose answers and checks follow a script."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from decoding.claims.claim_probabilities import VIEWS
from decoding.outputs import FinishInfo, RequestStats, Token, Usage
from decoding.prompt import Prompt
from decoding.requests import GenerateRequest
from tests.decoding.fakes import RecordingEngine

Write = Callable[[str, tuple[str, ...], int | None], str]  # (prefix, ruled-out phrases, seed) -> the rest of the answer


class ScriptedEngine(RecordingEngine):
    """Writes answers word by word, an end token after them, and answers checks from a table.

    `probabilities` maps the thing that a question names ("dog" in "Is there a dog in the image?") to P(yes), or to
    one for each view. Each word is a token, with the space or the punctuation before it.
    """

    def __init__(self, write: Write, probabilities: Mapping[str, float | tuple[float, ...]]) -> None:
        super().__init__()
        self.write = write
        self.probabilities = probabilities
        self.words: list[str] = []  # token id -> text
        self.all_stats: list[RequestStats] = []  # of each request

    @property
    def checked_questions(self) -> list[str]:
        """The questions of all checks."""
        return [
            each.prompt.question for each in self.history if isinstance(each, GenerateRequest) and each.scored_texts
        ]

    @property
    def drafts(self) -> list[GenerateRequest]:
        """The requests for text."""
        return [each for each in self.history if isinstance(each, GenerateRequest) and not each.scored_texts]

    @property
    def passes(self) -> int:
        """Forward passes of all requests."""
        return sum(stats.forward_passes for stats in self.all_stats)

    def ids(self, text: str) -> list[int]:
        """Encode a text."""
        found = re.findall(r" ?[\w-]+|[^\w\s]|\s", text)
        self.words += [word for word in dict.fromkeys(found) if word not in self.words]
        return [self.words.index(word) for word in found]

    def decode(self, prefix: Sequence[int | str]) -> str:
        return "".join(part if isinstance(part, str) else self.words[part] for part in prefix)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        self.history.append(request)
        stats = RequestStats(prompt_tokens=10, forward_passes=1)
        self.all_stats.append(stats)
        await asyncio.sleep(0)
        if request.scored_texts:
            yield self._check(request, stats)
            return
        sampling, prefix = request.sampling, self.decode(request.answer_prefix)
        ids = self.ids(self.write(prefix, request.ruled_out, sampling.seed))
        room = math.inf if sampling.max_tokens is None else sampling.max_tokens - len(request.answer_prefix)
        for number, id_ in enumerate(ids, 1):
            await asyncio.sleep(0)
            is_last = number >= room
            stats.steps, stats.forward_passes = number, number + 1
            finish = self._scripted_finish(stats, "length") if is_last else None
            yield Token(id_, self.words[id_], finish=finish, changed=False, stats=stats)
            if is_last:
                return
        stats.steps, stats.forward_passes = len(ids) + 1, len(ids) + 2
        yield Token(100_000, "", finish=self._scripted_finish(stats, "stop"), changed=False, stats=stats)

    def _scripted_finish(self, stats: RequestStats, reason: str) -> FinishInfo:
        usage = Usage(stats.prompt_tokens, stats.steps, stats.steps, stats.forward_passes)
        return FinishInfo(reason, usage)  # type: ignore[arg-type]

    def _check(self, request: GenerateRequest, stats: RequestStats) -> Token:
        found = re.fullmatch(r"Is there (?:an? )?(.+) in the image\?", request.prompt.question)
        assert found is not None, request.prompt.question
        p = self._find_probability(found[1], request.prompt)
        logprobs = {
            "Yes": math.log(p / 2),
            "yes": math.log(p / 2),
            "No": math.log((1 - p) / 2),
            "no": math.log((1 - p) / 2),
        }
        return Token(0, "", finish=FinishInfo("stop", Usage(forward_passes=1), text_logprobs=logprobs), stats=stats)

    def _find_probability(self, thing: str, prompt: Prompt) -> float:
        if not prompt.images:
            thing = "blind"
        p = self.probabilities.get(thing, 0.95)
        if isinstance(p, tuple):
            return p[VIEWS.index(prompt.images[0].shift)]  # type: ignore[arg-type]
        return p
