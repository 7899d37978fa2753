"""Interface of the engines, which run a model. An engine contains no code for particular strategies."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from decoding.outputs import RelevanceMap, StateHandle, Token, Usage
from decoding.requests import GenerateRequest, ProbeRequest, Prompt, RelevanceRequest, VectorsRequest
from decoding.sampling_params import Grammar

Capability = Literal[
    "branches",
    "logits",
    "head_scales",
    "edit_attention_scores",
    "gate_heads",
    "attention_statistics",
    "keep_image_tokens",
    "early_exit_layers",
    "steer",
    "probe",
    "vision_attention",
    "attention",
    "hidden_states",
    "attention_updates",
    "layer_inputs",
    "update_state",
    "relevance",
    "vectors",
    "noise",
    "scored_texts",
    "forced_token_ids",
    "answer_prefix",
    "logprobs",
    "prompt_logprobs",
    "grammar",
    "tokenize",
]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of every engine. `model` and `matcher` are folders or hub ids."""

    model: str
    matcher: str | None = None  # image-text matcher; None: strategies that need relevance maps are refused
    attention_statistics: Path | None = None  # file of the model's; None: strategies that need them are refused
    name: str | None = None  # the model's name in the API; None: the last part of `model`
    vectors: Path | None = None  # folder with steering vectors; None: strategies that need some are refused
    chat_template: Path | None = None  # file with a Jinja template; None: the checkpoint's
    max_rows: int = 64  # prompts and branches that run at once
    max_waiting: int = 256  # rows in the queue; beyond them requests are refused


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Name and limits of the served model."""

    name: str
    max_model_len: int  # tokens, prompt and answer together
    supports_images: bool
    max_characters: int | None = None  # of a prompt's text; a longer one cannot fit the context


class Engine(Protocol):
    """Interface of an engine.

    A request that an engine cannot serve raises `Unsupported` or `BadRequest` before anything runs.
    """

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    @property
    def missing_reasons(self) -> Mapping[str, str]:
        """Reasons why the model lacks capabilities that others have, by capability."""
        ...

    @property
    def card(self) -> ModelCard: ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Stream the answer. Closing the generator frees its rows before the next step."""
        ...

    async def compile_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar for all requests that will hold it. `generate` compiles one that is not compiled.

        The time and the memory are those of its check in `decoding/text/grammar_check.py`.
        """
        ...

    async def check(self, request: GenerateRequest) -> None:
        """Refuse a request that `generate` would refuse, and run nothing."""
        ...

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, with those of its images."""
        ...

    async def estimate_pixel_bytes(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Estimate the bytes that the processed images of one row take until it ends.

        Args:
            sizes: Width and height of each image.
        """
        ...

    async def probe(self, request: ProbeRequest) -> tuple[StateHandle, Usage]: ...

    async def compute_relevance_map(self, request: RelevanceRequest) -> RelevanceMap: ...

    async def load_vectors(self, request: VectorsRequest) -> StateHandle: ...

    def free_state(self, state: StateHandle) -> None:
        """Free a strategy state. Its handle is invalid afterwards."""
        ...

    @property
    def counter_help(self) -> Mapping[str, str]:
        """Help text of each counter, by name."""
        ...

    async def get_counters(self) -> Mapping[str, int]:
        """Return counters since the start, by name. An engine without counters returns an empty mapping."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether the queue is full, so that a request can be refused before it is parsed."""
        ...

    @property
    def is_alive(self) -> bool: ...

    async def start(self) -> None:
        """Load the model and warm it up."""
        ...

    async def close(self) -> None:
        """Stop the engine. Requests that still run fail."""
        ...
