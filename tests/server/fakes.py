"""An engine without a model: it yields scripted words and records the requests."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from decoding.engine import Capability, ModelCard
from decoding.errors import BadRequest, OnlySeenError
from decoding.outputs import (
    NO_TOKEN,
    Answer,
    FinishInfo,
    PromptLogprobs,
    PromptScores,
    RelevanceMap,
    RequestStats,
    StateHandle,
    Token,
    TokenLogprob,
    Usage,
)
from decoding.requests import GenerateRequest, ProbeRequest, Prompt, RelevanceRequest, VectorsRequest
from decoding.sampling_params import Grammar
from decoding.strategy import Program, Strategy, Tensors

ALL_CAPABILITIES: frozenset[Capability] = frozenset(
    {
        "branches",
        "logits",
        "head_scales",
        "probe",
        "update_state",
        "relevance",
        "noise",
        "scored_texts",
        "forced_token_ids",
        "logprobs",
        "prompt_logprobs",
        "grammar",
        "tokenize",
    }
)


class FakeEngine:
    """Engine that raises `failure` after `fails_after` words, and waits `pause` seconds before each word.

    A request for scored texts gets P(yes) from `yes`, by the first key that its prompt contains, else 0.95. A word that
    is ruled out becomes its value in `replacements`. A prompt of more than `max_words` words is refused.
    """

    def __init__(
        self,
        words: Sequence[str] = ("A ", "cat ", "on ", "a ", "mat."),
        *,
        pause: float = 0.0,
        failure: BaseException | None = None,
        fails_after: int = 0,
        capabilities: frozenset[Capability] = ALL_CAPABILITIES,
        yes: Mapping[str, float] | None = None,
        replacements: Mapping[str, str] | None = None,
        max_words: int | None = None,
    ) -> None:
        self.words = words
        self.yes = yes or {}
        self.replacements = replacements or {}
        self.max_words = max_words
        self.pause = pause
        self.failure = failure
        self.fails_after = fails_after
        self.capabilities = capabilities
        self.missing_reasons: Mapping[str, str] = {}
        self.card = ModelCard("fake", max_model_len=4096, supports_images=True)
        self.is_alive = True
        self.is_full = False
        self.requests: list[GenerateRequest] = []
        self.compiled_grammars: list[Grammar] = []
        self.running = 0
        self.most_running = 0
        self.closed_early = 0
        self.stored_states: set[str] = set()
        self.counter_values: dict[str, int] = {}
        self.can_start = asyncio.Event()
        self.can_start.set()
        self._handles = itertools.count()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        await self.check(request)
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        ruled_out = set(request.ruled_out)
        words = [self.replacements[word] if word.strip(" .") in ruled_out else word for word in self.words]
        words = words[len(request.answer_prefix) : request.sampling.max_tokens]
        finished = False
        try:
            if request.prompt_logprobs is not None:
                finished = True
                usage = Usage(prompt_tokens=3, forward_passes=1)
                yield Token(NO_TOKEN, "", finish=FinishInfo("stop", usage, prompt_logprobs=score_words(request)))
                return
            if request.scored_texts:
                await asyncio.sleep(self.pause)
                finished = True
                yield Token(NO_TOKEN, "", finish=self._score_texts(request))
                return
            for position, word in enumerate(words):
                await asyncio.sleep(self.pause)
                if self.failure is not None and position == self.fails_after:
                    raise self.failure
                is_last = position == len(words) - 1
                finished = is_last
                yield self._token(request, word, self._finish_info(request, len(words)) if is_last else None)
        finally:
            self.running -= 1
            self.closed_early += not finished

    async def compile_grammar(self, grammar: Grammar) -> None:
        self.compiled_grammars.append(grammar)

    async def check(self, request: GenerateRequest) -> None:
        await self.tokenize(request.prompt)

    async def tokenize(self, prompt: Prompt) -> list[int]:
        ids = [len(word) for message in prompt.messages for word in message.text.split()]
        if self.max_words is not None and len(ids) > self.max_words:
            raise BadRequest("The prompt is too long.", param="messages", code="context_length_exceeded")
        return ids

    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        await asyncio.sleep(self.pause)
        return self._store_state(), Usage(forward_passes=len(probe.prompts))

    async def compute_relevance_map(self, relevance: RelevanceRequest) -> RelevanceMap:
        return RelevanceMap(np.ones((4, 4), dtype=np.float32), similarity=0.5, input_size=32)

    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        return self._store_state()

    @property
    def counter_help(self) -> dict[str, str]:
        return {name: f"Help of {name}." for name in self.counter_values}

    async def get_counters(self) -> dict[str, int]:
        return self.counter_values

    async def estimate_pixel_bytes(self, sizes: Sequence[tuple[int, int]]) -> int:
        return sum(12 * width * height for width, height in sizes)

    def free_state(self, state: StateHandle) -> None:
        self.stored_states.discard(state.handle)

    async def start(self) -> None:
        await self.can_start.wait()

    async def close(self) -> None:
        self.is_alive = False

    def _store_state(self) -> StateHandle:
        state = StateHandle(f"state-{next(self._handles)}")
        self.stored_states.add(state.handle)
        return state

    def _token(self, request: GenerateRequest, word: str, end: FinishInfo | None) -> Token:
        chosen = TokenLogprob(1, word, word.encode(), -0.25)
        top = tuple(
            TokenLogprob(rank, f"{word}{rank}", b"?", -1.0 - rank) for rank in range(request.sampling.top_logprobs or 0)
        )
        has_logprobs = request.sampling.top_logprobs is not None
        grounding = 0.5 if request.grounding_branch else None
        return Token(
            1, word, chosen if has_logprobs else None, top, grounding, end, stats=RequestStats(prompt_tokens=7)
        )

    def _score_texts(self, request: GenerateRequest) -> FinishInfo:
        text = request.prompt.messages[-1].text
        probability = next((value for key, value in self.yes.items() if key in text), 0.95)
        shares = {text: probability if text.lower() == "yes" else 1 - probability for text in request.scored_texts}
        logprobs = {text: math.log(share / 2) for text, share in shares.items()}
        return FinishInfo("stop", Usage(prompt_tokens=3, forward_passes=1), text_logprobs=logprobs)

    def _finish_info(self, request: GenerateRequest, tokens: int) -> FinishInfo:
        rows = 1 + len(request.branches)
        is_cut = len(self.words) > len(request.answer_prefix) + tokens
        usage = Usage(
            prompt_tokens=7,
            completion_tokens=tokens,
            steps=tokens,
            forward_passes=rows * tokens,
            changed_steps=None if any("head_scales" in strategy.list_hooks() for strategy in request.stack) else 2,
            seconds={"decode": 0.5},
        )
        return FinishInfo("length" if is_cut else "stop", usage, self._store_state() if request.state_updater else None)


def score_words(request: GenerateRequest) -> PromptLogprobs:
    """Score the words of a prompt: ids from 1 on, log-probabilities -1, -2, ..., and the third word is an image."""
    words = [f"{word} " for word in f"{request.prompt.question} {request.continued_text}".split()]
    count, ids = request.prompt_logprobs or 0, list(range(1, len(words) + 1))
    top = np.arange(count)[None].repeat(len(words) - 1, 0)
    scores = PromptScores(-np.arange(1.0, len(words), dtype=np.float32), np.array(ids[1:]), 100 + top, -0.5 - top)
    texts = {**dict(zip(ids, words, strict=True)), **{100 + number: f"top{number}" for number in range(count)}}
    offsets = [sum(map(len, words[:number])) for number in range(len(words) + 1)]
    return PromptLogprobs(ids, offsets, scores, np.array(ids[1:]) != 3, texts)


class FakePlain(Strategy):
    """Change nothing."""

    name = "plain"
    paper = "none"


class Blind(Strategy):
    """Contrast with a prompt without images.

    A second paragraph.
    """

    name = "blind"
    paper = "none"
    alpha: float = 1.0
    refusals: ClassVar[list[OnlySeenError]] = []

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        request.prompt.require_images(self.name)
        return request.with_branch("none", request.prompt.without_images())


class Focus(Strategy):
    """Scale heads after one probe of two prompts."""

    name = "focus"
    paper = "none"

    def run(self, request: GenerateRequest) -> Program:
        state = yield ProbeRequest({"main": request.prompt, "blind": request.prompt.without_images()}, main="main")
        return request.with_state(state)

    def head_scales(self, state: Tensors) -> None:
        return None


class TwoAnswers(Strategy):
    """Generate two answers in parallel and return the first."""

    name = "vote"
    paper = "none"

    def run(self, request: GenerateRequest) -> Program:
        answers: list[Answer] = yield [request, request]
        return answers[0]


FAKE_STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Blind, Focus, FakePlain, TwoAnswers)
}
