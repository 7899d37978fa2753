"""The transformers engine: the reference and the default."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import get_args

from decoding.base_engine import BaseEngine
from decoding.engine import Capability
from decoding.errors import BadRequest, EngineFailed, OnlySeenError
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.probe import EncodedProbe
from decoding.hf_engine.request import RequestHandle, RequestState, RequestStatus
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.strategy_state import StoredStrategyState
from decoding.hf_engine.worker import Worker
from decoding.malloc import limit_arenas
from decoding.outputs import StateHandle, Token, Usage
from decoding.requests import GenerateRequest, ProbeRequest, VectorsRequest
from decoding.text.detokenizer import TokenText
from decoding.text.grammar_mask import GrammarCompiler
from decoding.text.prompt_encoder import AnswerStart, ModelInputs, PromptEncoder

MAX_PROMPT_SHARE = 0.5  # of the KV cache, for the prompts of a request with branches
COUNTER_HELP = {
    "prefix_cache_queries": "Tokens of prompts with images that were looked up in the prefix cache.",
    "prefix_cache_hits": "Tokens of prompts with images that were found in the prefix cache.",
    "num_preemptions": "Requests preempted because the KV cache was full; they recompute their answers.",
}
ALL_CAPABILITIES: frozenset[Capability] = frozenset(get_args(Capability))


class HFEngine(BaseEngine):
    """Runs a model of transformers in one worker thread of this process."""

    settings: HFSettings

    def __init__(self, settings: HFSettings) -> None:
        super().__init__(settings)
        limit_arenas()
        self._states: dict[str, StoredStrategyState] = {}
        self._state_numbers = itertools.count()
        self._model: Model | None = None
        self._worker: Worker | None = None

    @property
    def is_alive(self) -> bool:
        return self._worker is not None and self._worker.is_alive

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            EngineFailed: The model is not loaded yet.
        """
        if self._model is None:
            raise EngineFailed(self._unavailable_message)
        return self._model

    @property
    def worker(self) -> Worker:
        """The worker thread.

        Raises:
            EngineFailed: The worker has not started yet.
        """
        if self._worker is None:
            raise EngineFailed(self._unavailable_message)
        return self._worker

    @property
    def encoder(self) -> PromptEncoder:
        return self.model.encoder

    def _get_model_capabilities(self) -> frozenset[Capability]:
        missing: set[Capability] = set()
        if self._model is not None:
            missing |= {"vision_attention"} if self._model.vision_attention_tap is None else set()
            missing |= {"keep_image_tokens"} if self._model.token_pruning_tap is None else set()
        return ALL_CAPABILITIES - missing

    # Life cycle

    async def _load_model(self) -> str:
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._encode_thread, Model, self.settings)
        tokenizer = model.encoder.tokenizer
        self._model = model
        self._token_text = TokenText(tokenizer)
        self._grammars = GrammarCompiler(tokenizer, model.vocab_size, model.eos_token_ids, model.device)
        self._worker = await loop.run_in_executor(self._encode_thread, Worker, model, self.settings)
        self._worker.start()
        return str(model.device)

    async def _stop_model(self) -> None:
        if self._worker is not None and self._worker.is_alive:
            await asyncio.to_thread(self._worker.close)

    @property
    def counter_help(self) -> Mapping[str, str]:
        return COUNTER_HELP

    async def get_counters(self) -> Mapping[str, int]:
        """Return the prompt tokens looked up and found in the prefix cache, and the number of preemptions."""
        cache, preemptions = self.worker.prefix_cache, self.worker.scheduler.preemptions
        counters = {"prefix_cache_queries": cache.queries, "prefix_cache_hits": cache.hits}
        return {**counters, "num_preemptions": preemptions}

    # Requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Stream the answer. Closing the generator frees the request's rows before the next step.

        A request that is refused, finds the queue full or fails while it runs raises an `OnlySeenError`.

        Yields:
            The tokens of the answer.
        """
        with self._reserve_request(request) as reservation:
            states = {strategy: self._states[state.handle] for strategy, state in request.states.items()}
            prepared, answer_start, forced_prefix = await self._prepare_start(request)
            request_state = await self._encode(lambda: self._build_request(prepared, states, answer_start))
            handle = RequestHandle(request_state, reservation, asyncio.get_running_loop())
            self.worker.submit(handle)
            try:
                while True:
                    output = await handle.outputs.get()
                    if isinstance(output, OnlySeenError):
                        try:
                            raise output
                        finally:
                            del output  # its traceback would keep the request with its grammar in a cycle
                    if output.finish is not None:
                        if request.updates_state:
                            state = self._store_state(StoredStrategyState(request_state.updated_state))
                            output = replace(output, finish=replace(output.finish, state=state))
                        yield output
                        return
                    if not forced_prefix.consume(output):
                        yield output
            finally:
                request_state.stats.left = handle.left
                handle.advance(RequestStatus.ABORTED)

    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        """Run a probe between two steps.

        Returns:
            The state that the probe leaves, and the rows that it ran.
        """
        with self._reserve_probe(probe):
            inputs = await self._encode(lambda: self._encode_prompts(probe.prompts))
            state = await self.worker.run_task(EncodedProbe(probe, inputs))
        return self._store_state(state), Usage(forward_passes=len(inputs))

    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        vectors = await self._read_vectors(request, self.model.device)
        return self._store_state(StoredStrategyState({"vectors": vectors}))

    def _can_prefill_answer(self, request: GenerateRequest) -> bool:
        """Return whether no strategy edits attention: it edits that of a token when the token is the newest."""
        return not any(strategy.acts_on_attention() for strategy in request.stack)

    def _build_request(
        self, request: GenerateRequest, states: Mapping[str, StoredStrategyState], answer_start: AnswerStart
    ) -> RequestState:
        """Encode a request.

        Args:
            request: The request.
            states: Strategy name -> its state.
            answer_start: Answer prefix and ruled-out phrases.

        Returns:
            The request for the worker.
        """
        inputs = self._encode_fitting(request, answer_start)
        return RequestState(request, inputs, states, self.model, self._token_text, self._grammars, answer_start)

    def _check_length(self, request: GenerateRequest, answer_start: AnswerStart) -> None:
        self._encode_fitting(request, answer_start)

    def _encode_fitting(self, request: GenerateRequest, answer_start: AnswerStart) -> dict[str, ModelInputs]:
        """Encode the prompts of a request.

        Args:
            request: The request.
            answer_start: Answer prefix and ruled-out phrases.

        Returns:
            The inputs of each row.

        Raises:
            BadRequest: They take more than half of the KV cache. While they are prefilled, their keys and values exist
                twice.
        """
        inputs = self._encode_request(request, answer_start)
        rows, longest = len(inputs), max(map(len, inputs.values()))
        if rows > 1 and rows * longest > MAX_PROMPT_SHARE * self.worker.max_slots:
            raise BadRequest(
                f"The prompts of the request's {rows} rows have up to {longest} tokens each. Together they take more "
                f"than half of the {self.worker.max_slots} slots of the engine's KV cache. A slot holds one token.",
                param="messages",
                code="context_length_exceeded",
            )
        return inputs

    # Strategy states

    def free_state(self, state: StateHandle) -> None:
        """Free a state. Requests that use it keep its tensors until they end."""
        self._states.pop(state.handle, None)

    def _has_state(self, state: StateHandle) -> bool:
        return state.handle in self._states

    def _store_state(self, state: StoredStrategyState) -> StateHandle:
        handle = StateHandle(f"state-{next(self._state_numbers)}")
        self._states[handle.handle] = state
        return handle
