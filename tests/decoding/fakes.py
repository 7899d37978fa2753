"""A fake engine without a model, which answers from a queue and records its requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from typing import get_args

import numpy as np
from PIL import Image

from decoding.engine import Capability, ModelCard
from decoding.outputs import FinishInfo, RelevanceMap, StateHandle, Token, Usage
from decoding.requests import GenerateRequest, ImageInput, ProbeRequest, Prompt, RelevanceRequest, VectorsRequest

EVERYTHING: frozenset[Capability] = frozenset(get_args(Capability))


class RecordingEngine:
    """Streams the queued answers in turn, word by word, then "A cat." A queued exception is raised.

    Every answer and every probed prompt costs `rows` forward passes. With `stuck_after`, requests after that many are
    never answered, and each releases `stuck`.
    """

    rows = 5

    def __init__(
        self, *answers: str | Exception, stuck_after: int | None = None, lacks: Set[Capability] = frozenset()
    ) -> None:
        self.answers = deque(answers)
        self.stuck_after = stuck_after
        self.capabilities = EVERYTHING - lacks
        self.missing_reasons: Mapping[str, str] = {}
        self.stuck = asyncio.Semaphore(0)
        self.history: list[GenerateRequest | ProbeRequest | RelevanceRequest | VectorsRequest] = []
        self.held_states: list[StateHandle] = []  # not freed yet
        self.freed_states: list[StateHandle] = []
        self.running = 0
        self.most_running = 0
        self.num_closed_early = 0  # answers that were closed or cancelled before their end
        self.is_alive = True
        self.is_full = False

    @property
    def card(self) -> ModelCard:
        return ModelCard("fake", max_model_len=4096, supports_images=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        self.history.append(request)
        answer = self.answers.popleft() if self.answers else "A cat."
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        finished = False
        try:
            await self._pace()
            if isinstance(answer, Exception):
                raise answer
            words = answer.split(" ")
            for number, word in enumerate(words, 1):
                await asyncio.sleep(0)
                text = word if number == 1 else f" {word}"
                finished = number == len(words)
                yield Token(number, text, finish=self._end(request, number) if finished else None)
        finally:
            self.running -= 1
            self.num_closed_early += not finished

    async def _pace(self) -> None:
        if self.stuck_after is not None and len(self.history) > self.stuck_after:
            self.stuck.release()
            await asyncio.Event().wait()

    def _end(self, request: GenerateRequest, tokens: int) -> FinishInfo:
        usage = Usage(completion_tokens=tokens, steps=tokens, forward_passes=self.rows)
        logprobs = {text: -1.0 - number for number, text in enumerate(request.scored_texts)}
        return FinishInfo("stop", usage, self._new_state_handle() if request.state_updater else None, logprobs)

    def _new_state_handle(self) -> StateHandle:
        state = StateHandle(f"state {len(self.held_states) + len(self.freed_states)}")
        self.held_states.append(state)
        return state

    async def tokenize(self, prompt: Prompt) -> list[int]:
        raise NotImplementedError

    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        self.history.append(probe)
        await self._pace()
        return self._new_state_handle(), Usage(forward_passes=self.rows * len(probe.prompts))

    async def compute_relevance_map(self, relevance: RelevanceRequest) -> RelevanceMap:
        self.history.append(relevance)
        await self._pace()
        return RelevanceMap(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), similarity=0.5, input_size=32)

    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        self.history.append(request)
        return self._new_state_handle()

    @property
    def counter_help(self) -> dict[str, str]:
        return {}

    async def get_counters(self) -> dict[str, int]:
        return {}

    async def estimate_pixel_bytes(self, sizes: Sequence[tuple[int, int]]) -> int:
        return sum(12 * width * height for width, height in sizes)

    def free_state(self, state: StateHandle) -> None:
        self.held_states.remove(state)
        self.freed_states.append(state)

    async def start(self) -> None:
        self.is_alive = True

    async def close(self) -> None:
        self.is_alive = False


def random_image(seed: int = 0, size: tuple[int, int] = (48, 32)) -> ImageInput:
    """Build an image without a black pixel. `size` is width and height."""
    pixels = np.random.default_rng(seed).integers(1, 256, (size[1], size[0], 3), dtype=np.uint8)
    return ImageInput(Image.fromarray(pixels))


def make_request(text: str = "Is there a cat in the image?", *images: ImageInput) -> GenerateRequest:
    """Build a request about the given images, or about one random image."""
    return GenerateRequest(Prompt.from_text(text, *(images or (random_image(),))))
