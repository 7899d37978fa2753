"""Base class of both engines: row reservations, encoding off the event loop, the matcher and the warm-up."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from decoding.engine import Capability, EngineSettings, ModelCard
from decoding.errors import BadRequest, EngineFailed, OnlySeenError, Unsupported, to_public_error
from decoding.matcher.service import MatcherService
from decoding.multimodal.config import load_config
from decoding.multimodal.vector_files import VectorFiles
from decoding.outputs import Answer, RelevanceMap, StateHandle, Token, Usage
from decoding.pipeline.capabilities import REASONS, require_capabilities, require_hooks
from decoding.pipeline.runner import collect_answer
from decoding.prompt import ImageInput, Prompt
from decoding.requests import MAIN, GenerateRequest, ProbeRequest, RelevanceRequest, VectorsRequest
from decoding.row_reservation import RowReservation, count_waiting_rows, reserve_rows
from decoding.sampling_params import Grammar, SamplingParams
from decoding.text.grammar_mask import GrammarCompiler
from decoding.text.prompt_encoder import AnswerStart, ModelInputs, PromptEncoder
from decoding.text.prompt_logprobs import check_entries

Result = TypeVar("Result")

NOT_LOADED = "The model is still being loaded."
STOPPED = "The engine has stopped."
FAILED_WARM_UP = (
    "The model is loaded, and fails on a small request. The log has the reason. If the memory is full, lower "
    "--cache-gb or --max-rows, or use a smaller model."
)
WARM_UP_TOKENS = 3
GRAMMAR_THREADS = 2  # as many as the server compiles at a time


class EngineStatus(Enum):
    """Status in the life cycle of an engine."""

    LOADING = auto()  # from its construction on
    RUNNING = auto()
    STOPPED = auto()


@dataclass(slots=True)
class ForcedPrefix:
    """The tokens of an answer prefix that an engine generates as forced tokens. They are not output.

    Attributes:
        remaining: Number of the tokens that have not been generated.
    """

    remaining: int = 0

    def consume(self, token: Token) -> bool:
        """Consume the next token of an answer if it belongs to the prefix.

        Returns:
            Whether it does. The last token of an answer, which carries the finish information, does not.
        """
        if self.remaining == 0 or token.finish is not None:
            return False
        self.remaining -= 1
        return True


class BaseEngine(ABC):
    """Base class of the engines. A subclass loads and runs the model.

    Prompts are encoded in one thread, because fast tokenizers are not thread-safe. Grammars are compiled in threads of
    their own, so that no prompt waits for a grammar. The matcher has a thread of its own.
    """

    pixel_copies = 1  # of the processed images of a row, in all processes

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.status = EngineStatus.LOADING
        self.matcher_service = MatcherService()
        self._encode_thread = ThreadPoolExecutor(1, "onlyseen-encoder")
        self._grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, "onlyseen-grammar")
        self._grammars: GrammarCompiler  # of the loaded model; `_load_model` sets it
        self._reservations: set[RowReservation] = set()
        self._vector_files: VectorFiles | None = None  # of the encode thread

    # Parts that differ between the engines

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether the engine has started and not stopped."""

    @property
    @abstractmethod
    def encoder(self) -> PromptEncoder:
        """The encoder of the loaded model. The property raises `EngineFailed` before the model is loaded."""

    @abstractmethod
    def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Stream the answer. Closing the generator frees the request's rows before the next step."""

    @abstractmethod
    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        """Run a probe. Return the state that it leaves, and its cost."""

    @abstractmethod
    def free_state(self, state: StateHandle) -> None:
        """Free a strategy state. Requests that use it keep its tensors until they end."""

    @property
    @abstractmethod
    def counter_help(self) -> Mapping[str, str]:
        """Help text of each counter, by name."""

    @abstractmethod
    async def get_counters(self) -> Mapping[str, int]:
        """Return counters since the start, by name."""

    @abstractmethod
    def _get_model_capabilities(self) -> frozenset[Capability]:
        """Return the capabilities of the engine and its model. The matcher's are added to them."""

    @abstractmethod
    def _has_state(self, state: StateHandle) -> bool:
        """Return whether a strategy state exists."""

    @abstractmethod
    async def _load_model(self) -> str:
        """Load the model and begin to run it. Return the device for the matcher."""

    @abstractmethod
    async def _stop_model(self) -> None:
        """Stop running the model, if it is loaded. Requests that still run fail with `EngineFailed`."""

    # Life cycle

    async def start(self) -> None:
        """Load the model and the matcher, and warm them up.

        Raises:
            EngineFailed: The model fails on its first request.
        """
        try:
            device = await self._load_model()
            self.status = EngineStatus.RUNNING
            if self.settings.matcher:
                await self.matcher_service.load(self.settings.matcher, device)
            try:
                await self._warm_up()
            except EngineFailed as error:
                raise EngineFailed(f"{FAILED_WARM_UP} {error.message}") from error
        except BaseException:
            self.status = EngineStatus.STOPPED
            await self._stop_model()
            raise

    async def close(self) -> None:
        """Stop. Requests that still run fail with `EngineFailed`."""
        self.status = EngineStatus.STOPPED
        await self._stop_model()
        await asyncio.to_thread(self._encode_thread.shutdown)
        await asyncio.to_thread(self._grammar_threads.shutdown)
        await self.matcher_service.close()

    @property
    def _unavailable_message(self) -> str:
        """Message for requests while the model does not run."""
        return NOT_LOADED if self.status is EngineStatus.LOADING else STOPPED

    async def _warm_up(self) -> tuple[GenerateRequest, Answer]:
        """Run a small request with an image and a branch. First passes allocate memory and tune kernels.

        Returns:
            The request and its answer.
        """
        image = ImageInput(Image.new("RGB", (64, 64)))
        sampling = SamplingParams(max_tokens=WARM_UP_TOKENS, ignore_eos=True)
        request = GenerateRequest(Prompt.from_text("Hello.", image), sampling)
        if self.settings.max_rows > 1:
            request = request.replace(branches={"warm/up": request.prompt.without_images()})
        answer = await collect_answer(self.generate(request))
        if self.matcher_service.matcher is not None:
            await self.compute_relevance_map(RelevanceRequest(image, "hello"))
        return request, answer

    # Description

    @property
    def card(self) -> ModelCard:
        """Name and limits of the model."""
        name = self.settings.name or Path(self.settings.model).name
        return ModelCard(name, self.encoder.max_model_len, True, self.encoder.max_characters)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Capabilities of the engine, the model, the matcher, the attention statistics and the steering vectors."""
        optional: frozenset[Capability] = frozenset({"relevance", "attention_statistics"})
        missing: set[Capability] = set() if self.settings.matcher else {"relevance"}
        missing |= set() if self.settings.attention_statistics else {"attention_statistics"}
        missing |= set() if self.settings.vectors else {"vectors"}
        return (self._get_model_capabilities() | optional) - missing

    @property
    def missing_reasons(self) -> Mapping[str, str]:
        """Reasons why the model lacks capabilities that others have, by capability."""
        return {}

    @property
    def is_full(self) -> bool:
        """Whether no more row can wait, so that a request can be refused before it is read."""
        return count_waiting_rows(self._reservations) >= self.settings.max_waiting

    # Requests

    async def check(self, request: GenerateRequest) -> None:
        """Refuse a request that `generate` would refuse whatever else runs, and run nothing."""
        self._check_request(request)
        request, answer_start, _ = await self._prepare_start(request)
        await self._encode(lambda: self._check_length(request, answer_start))

    async def compile_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar for all requests that will hold it. `generate` compiles one that is not compiled.

        Raises:
            EngineFailed: The engine does not run.
        """
        if not self.is_alive:
            raise EngineFailed(self._unavailable_message)
        await self._encode(lambda: self._grammars.llg_tokenizer)  # reads the tokenizer, which is not thread-safe
        await run_in_thread(self._grammar_threads, lambda: self._grammars.compile(grammar), "grammar_failed")

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt as the model reads it, image tokens included."""
        encoder = self.encoder
        return await self._encode(lambda: encoder.encode(prompt).ids.tolist())

    async def estimate_pixel_bytes(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Estimate the bytes that the processed images of one row take until it ends.

        Args:
            sizes: Width and height of each image.

        Returns:
            The bytes in all processes; 0 for more tokens than the context, which are refused before they are processed.
        """
        encoder = self.encoder  # its tokenizer is not thread-safe, and some processors use it to count
        estimate = encoder.image_sizes.estimate_bytes
        return self.pixel_copies * await self._encode(lambda: estimate(sizes, encoder.max_model_len))

    async def compute_relevance_map(self, request: RelevanceRequest) -> RelevanceMap:
        """Compute which regions of an image matter to a text.

        Returns:
            The relevance map, from the matcher or from its cache.

        Raises:
            EngineFailed: The engine does not run.
        """
        if not self.is_alive:
            raise EngineFailed(self._unavailable_message)
        try:
            return await self.matcher_service.compute_relevance_map(request)
        except Exception as error:
            failure = to_public_error(error, "matcher_failed")
            raise failure from error

    @abstractmethod
    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        """Load vectors from the operator's folder. Return the state with them."""

    async def _read_vectors(self, request: VectorsRequest, device: torch.device) -> Tensor:
        """Read the vectors of a file.

        Args:
            request: The request for them.
            device: Device of the vectors.

        Returns:
            [layers, width], float32.

        Raises:
            Unsupported: The settings have no folder of vectors.
        """

        def read(folder: Path) -> Tensor:
            if self._vector_files is None:
                config = load_config(self.settings.model).get_text_config()
                sizes = config.num_hidden_layers, config.hidden_size
                self._vector_files = VectorFiles(folder, *sizes, device, self.settings.model)
            return self._vector_files.load(request)

        folder = self.settings.vectors
        if folder is None:
            raise Unsupported(f"{request.param}: {REASONS['vectors']}.", param=request.param)
        return await self._encode(lambda: read(folder))

    # Rows

    @contextmanager
    def _reserve_request(self, request: GenerateRequest) -> Iterator[RowReservation]:
        """Check a generation request and reserve its rows.

        Yields:
            The reservation. The caller sets its `is_running` at the first token.
        """
        self._check_request(request)
        rows = 1 + len(request.branches)
        with self._reserve_rows(rows, bypasses_limit=request.bypasses_queue_limit) as reservation:
            yield reservation

    def _check_request(self, request: GenerateRequest) -> None:
        """Check a generation request before it is encoded.

        Raises:
            BadRequest: The request refers to a branch, a state or a token that does not exist.
            Unsupported: The request needs more rows than the engine has.
        """
        rows = 1 + len(request.branches)
        if rows > self.settings.max_rows:
            raise Unsupported(f"The request needs {rows} rows; this engine runs {self.settings.max_rows}.")
        if request.grounding_branch is not None and request.grounding_branch not in request.branches:
            raise BadRequest(f"grounding_branch '{request.grounding_branch}' is not a branch of the request.")
        if not all(self._has_state(state) for state in request.states.values()):
            raise BadRequest("The request refers to a strategy state that was freed.")
        self._check_token_ids(request.sampling)
        require_hooks(request.stack, self.capabilities, self.missing_reasons)

    def _check_token_ids(self, sampling: SamplingParams) -> None:
        """Raise `BadRequest` if a token of the sampling parameters is not in the model's vocabulary."""
        biased = tuple(token for token, _ in sampling.logit_bias)
        for param, token_ids in (("logit_bias", biased), ("stop_token_ids", sampling.stop_token_ids)):
            for token in token_ids:
                if not 0 <= token < self._grammars.vocab_size:
                    message = f"{param}: the model has no token {token}, only 0 to {self._grammars.vocab_size - 1}."
                    raise BadRequest(message, param=param)

    @abstractmethod
    def _check_length(self, request: GenerateRequest, answer_start: AnswerStart) -> None:
        """Encode a request, and raise `BadRequest` if it does not fit the engine. Call it in the encode thread."""

    def _encode_prompts(self, prompts: Mapping[str, Prompt]) -> dict[str, ModelInputs]:
        return {name: self.encoder.encode(prompt) for name, prompt in prompts.items()}

    def _encode_request(self, request: GenerateRequest, answer_start: AnswerStart) -> dict[str, ModelInputs]:
        """Encode the main prompt and the branches, each followed by the answer prefix."""
        prompts = self._encode_prompts({MAIN: request.prompt, **request.branches})
        if request.continued_tokens:
            self.encoder.check_length(max(map(len, prompts.values())) + request.continued_tokens)
        inputs = {name: prompt.with_tokens(answer_start.ids) for name, prompt in prompts.items()}
        if request.prompt_logprobs is not None:
            check_entries(len(inputs[MAIN]), request.prompt_logprobs)
        return inputs

    async def _prepare_start(self, request: GenerateRequest) -> tuple[GenerateRequest, AnswerStart, ForcedPrefix]:
        """Encode the text to continue, with which the answer prefix then begins, and the ruled-out phrases.

        Prefilling the answer prefix is not possible for every request: see `_can_prefill_answer`. Otherwise its tokens
        are forced, one step each, and the engine drops them from its output.

        Returns:
            The request, its encoded answer prefix and ruled-out phrases, and the forced tokens.
        """
        if request.continued_text:
            request = await self._prepare_continued_text(request)
        if not request.answer_prefix and not request.ruled_out:
            return request, AnswerStart(), ForcedPrefix()
        answer_start = await self._encode(
            lambda: self.encoder.encode_answer_start(request.answer_prefix, request.ruled_out)
        )
        if self._can_prefill_answer(request):
            return request, answer_start, ForcedPrefix()
        sampling = replace(request.sampling, forced_token_ids=answer_start.ids)
        start, forced_prefix = AnswerStart(ruled_out=answer_start.ruled_out), ForcedPrefix(len(answer_start.ids))
        return request.replace(sampling=sampling), start, forced_prefix

    async def _prepare_continued_text(self, request: GenerateRequest) -> GenerateRequest:
        """Encode the text that the answer continues.

        Returns:
            The request. The text begins its answer prefix, and the limits on the answer's tokens allow for it.

        Raises:
            BadRequest: The answer has a format, and cannot begin with the text.
        """
        ids = await self._encode(lambda: self.encoder.encode_continued_text(request.continued_text))
        sampling, grammar = request.sampling, request.sampling.grammar
        if grammar is not None:
            await self.compile_grammar(grammar)
            # A grammar reads the bytes of the answer, which begin without the blank of the chat template.
            ids = await self._encode(lambda: tuple(self._grammars.llg_tokenizer.tokenize_str(request.continued_text)))
            begins = partial(self._grammars.begins, grammar, ids)
            if not await run_in_thread(self._grammar_threads, begins, "grammar_failed"):
                raise BadRequest("The answer has a format, and cannot begin with the last message.", param="messages")
        max_tokens = None if sampling.max_tokens is None else sampling.max_tokens + len(ids)
        min_tokens = sampling.min_tokens and sampling.min_tokens + len(ids)
        sampling = replace(sampling, max_tokens=max_tokens, min_tokens=min_tokens)
        return request.replace(
            sampling=sampling,
            answer_prefix=(*ids, *request.answer_prefix),
            continued_tokens=len(ids),
            continued_text="",
        )

    @abstractmethod
    def _can_prefill_answer(self, request: GenerateRequest) -> bool:
        """Return whether prefilled tokens of the answer act on the rest as generated ones do."""

    @contextmanager
    def _reserve_probe(self, probe: ProbeRequest) -> Iterator[RowReservation]:
        """Check a probe and reserve its rows.

        Yields:
            The reservation.
        """
        # "heads" may be captured wherever a probe can run.
        needs = {"probe", *probe.capture} - {"heads"}
        require_capabilities(probe.strategy, needs, self.capabilities, self.missing_reasons)
        with self._reserve_rows(len(probe.prompts)) as reservation:
            yield reservation

    @contextmanager
    def _reserve_rows(self, rows: int, bypasses_limit: bool = False) -> Iterator[RowReservation]:
        """Reserve rows.

        Args:
            rows: Rows to reserve.
            bypasses_limit: Whether the rows may wait in a full queue.

        Yields:
            The reservation.

        Raises:
            EngineFailed: The engine does not run.
        """
        if not self.is_alive:
            raise EngineFailed(self._unavailable_message)
        limit = sys.maxsize if bypasses_limit else self.settings.max_waiting
        with reserve_rows(self._reservations, rows, limit) as reservation:
            yield reservation

    async def _encode(self, work: Callable[[], Result]) -> Result:
        """Run work in the encode thread. An unexpected failure becomes `EngineFailed`.

        Returns:
            The result of the work.
        """
        return await run_in_thread(self._encode_thread, work, "encoding_failed")


async def run_in_thread(threads: ThreadPoolExecutor, work: Callable[[], Result], event: str) -> Result:
    """Run work in a thread. An unexpected failure becomes `EngineFailed`.

    Args:
        threads: The threads.
        work: Function without arguments.
        event: Log event of an unexpected failure.

    Returns:
        The result of the work.
    """
    result, error = await asyncio.get_running_loop().run_in_executor(threads, run_captured, work, event)
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback would keep the request with its grammar in a cycle
    return result  # type: ignore[no-any-return]


def run_captured(work: Callable[[], Any], event: str) -> tuple[Any, OnlySeenError | None]:
    """Run work in a thread whose future cannot carry every exception.

    Args:
        work: Function without arguments.
        event: Log event, if the failure is not the client's.

    Returns:
        The result and None, or None and the error for the client.
    """
    try:
        return work(), None
    except Exception as error:
        return None, to_public_error(error, event)
