"""Base class of the decoding strategies."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import cache
from typing import Any, ClassVar

from decoding.drafts import DraftProgram
from decoding.requests import Answer, GenerateRequest, ProbeRequest, RelevanceRequest, VectorsRequest
from decoding.tensor_hooks import (
    PER_ROW,
    TEXT_SIDE,
    Activations,
    AttentionKeys,
    EarlyExits,
    LayerPart,
    LayerPlace,
    SteeredLayers,
    Step,
    TensorHooks,
    Tensors,
)

__all__ = [
    "PER_ROW",
    "TEXT_SIDE",
    "Activations",
    "AttentionKeys",
    "EarlyExits",
    "Effect",
    "LayerPart",
    "LayerPlace",
    "Program",
    "SteeredLayers",
    "Step",
    "Strategy",
    "TensorHooks",
    "Tensors",
]

Effect = GenerateRequest | ProbeRequest | RelevanceRequest | VectorsRequest | list[GenerateRequest]
Program = Generator[Effect, Any, GenerateRequest | Answer]


class Strategy(TensorHooks):
    """One decoding method. The fields are its parameters.

    The text side (`prepare`, `run`, `stream`) makes requests and receives no tensor. The tensor side, `TensorHooks`,
    consists of pure functions, which run next to the model.
    """

    paper: ClassVar[str]
    official_code: ClassVar[str] = "none"  # repository of the authors' code on GitHub and its licence, as "a/b, MIT"
    neutral: ClassVar[Mapping[str, Any] | None] = None  # parameters with which decoding equals the plain model's
    needs_images: ClassVar[bool] = False  # a prompt without an image is refused before `run` or `stream`
    sends_claims: ClassVar[bool] = False  # its `stream` checks the answer, so that `decoding.check` need not

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        """Change the request, for strategies that need no other request first."""
        return request

    def count_image_copies(self) -> int:
        """Count the copies of each image that are kept until the answer ends. The server bounds their memory."""
        return 0

    def run(self, request: GenerateRequest) -> Program:
        """Yield requests and receive their replies.

        Branches, states and `updates_state` of the incoming request belong to outer strategies. A request derived from
        it with `replace` keeps them; a new `GenerateRequest` does not have them.

        Yields:
            A generation, probe, relevance or vectors request, or a list of generation requests that run together. The
            reply is an `Answer`, a `StateHandle`, a `RelevanceMap`, a `StateHandle`, or a list of answers.

        Returns:
            The request whose tokens are streamed, or an `Answer` that ends the stack.
        """
        return self.prepare(request)
        yield  # makes this a generator

    def stream(self, request: GenerateRequest) -> DraftProgram:
        """Read the answer while it is generated, and select the tokens for the client. Overridden instead of `run`.

        `stream` runs for requests for text only. Requests for `scored_texts` bypass it.

        Yields:
            `StartDraft`, `ReadDraft` (the reply is a `Segment`), `SendTokens`, or a list of generation requests that
            run together through the inner strategies (the reply is a list of answers).

        Returns:
            The finish reason of the answer.

        Raises:
            NotImplementedError: The strategy does not override `stream`.
        """
        raise NotImplementedError(f"{self.name} does not define `stream`")
        yield  # makes this a generator

    @classmethod
    @cache
    def overrides_stream(cls) -> bool:
        """Return whether this class overrides `stream`."""
        return cls.stream is not Strategy.stream

    @classmethod
    def incompatible_with(cls, outer: type[Strategy]) -> str | None:
        """Return the reason why `outer` cannot stand outside this strategy in a stack, or None."""
        return None
