"""The vLLM engine: the same strategies with the throughput of continuous batching."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decoding.base_engine import BaseEngine, run_in_thread
from decoding.engine import Capability
from decoding.errors import EngineFailed, Unsupported
from decoding.outputs import Answer, StateHandle, Token, Usage
from decoding.pipeline.early_exits import find_early_exits
from decoding.pipeline.steering import find_steered_places, select_steering_stack
from decoding.requests import GenerateRequest, ProbeRequest, VectorsRequest
from decoding.sampling_params import SamplingParams
from decoding.text.detokenizer import OutputProcessor
from decoding.text.grammar import TOO_COMPLICATED, InvalidSchema
from decoding.text.prompt_encoder import AnswerStart, PromptEncoder
from decoding.vllm_engine.core.gangs import COUNTER_HELP
from decoding.vllm_engine.frontend.checkpoint import Checkpoint
from decoding.vllm_engine.frontend.client import OutputCollector, VllmClient
from decoding.vllm_engine.frontend.member_builder import (
    EngineLimits,
    MemberRequest,
    build_members,
    build_probe_members,
    check_probe_fits,
    compute_max_new_tokens,
)
from decoding.vllm_engine.frontend.output_parser import OutputParser, raise_failure
from decoding.vllm_engine.frontend.selftest import check_lockstep, check_report
from decoding.vllm_engine.frontend.state_handles import StateHandles
from decoding.vllm_engine.settings import VllmSettings
from decoding.vllm_engine.worker.state_store import measure_updated_state

VECTORS_DIGEST = 32  # hexadecimal digits
PROBE_SAMPLING = SamplingParams(max_tokens=1, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class VectorsState:
    """Vectors of a file, [layers, width], and their state next to the model."""

    vectors: Tensor
    state: StateHandle


class VllmEngine(BaseEngine):
    """Runs the model in vLLM's processes."""

    settings: VllmSettings

    def __init__(self, settings: VllmSettings) -> None:
        super().__init__(settings)
        # Here, in the engine core, and in each process of tensor parallelism.
        self.pixel_copies = 2 + (settings.tensor_parallel if settings.tensor_parallel > 1 else 0)
        self._state_handles = StateHandles()
        self._gang_numbers = itertools.count()
        self._checkpoint: Checkpoint | None = None
        self._client: VllmClient | None = None
        self._limits: EngineLimits | None = None
        self._vector_states: dict[str, VectorsState] = {}  # by the name of a file
        self._missing: Mapping[str, str] = {}  # capability that the model lacks -> reason, from the worker's report
        self._engine_request_builder: Any = None  # an EngineRequestBuilder, whose module imports vLLM

    @property
    def is_alive(self) -> bool:
        return self._client is not None and self._client.is_alive

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's checkpoint.

        Raises:
            EngineFailed: The checkpoint is not loaded yet.
        """
        if self._checkpoint is None:
            raise EngineFailed(self._unavailable_message)
        return self._checkpoint

    @property
    def encoder(self) -> PromptEncoder:
        return self.checkpoint.encoder

    @property
    def client(self) -> VllmClient:
        """The client of the running vLLM.

        Raises:
            EngineFailed: vLLM has not started yet, or has stopped.
        """
        if self._client is None or not self._client.is_alive:
            raise EngineFailed(self._unavailable_message)
        return self._client

    @property
    def limits(self) -> EngineLimits:
        """The limits of the running vLLM.

        Raises:
            EngineFailed: vLLM has not started yet.
        """
        if self._limits is None:
            raise EngineFailed(self._unavailable_message)
        return self._limits

    def _get_model_capabilities(self) -> frozenset[Capability]:
        capabilities: set[Capability] = {
            "branches",
            "logits",
            "update_state",
            "head_scales",
            "early_exit_layers",
            "steer",
            "edit_attention_scores",
            "gate_heads",
            "attention",
            "hidden_states",
            "keep_image_tokens",
            "vision_attention",
            "probe",
            "vectors",
            "noise",
            "scored_texts",
            "forced_token_ids",
            "answer_prefix",
            "logprobs",
            "prompt_logprobs",
            "grammar",
            "tokenize",
        }
        return frozenset(capabilities - self._missing.keys())

    @property
    def missing_reasons(self) -> Mapping[str, str]:
        return self._missing

    # Life cycle

    async def _load_model(self) -> str:
        settings = self.settings
        loop = asyncio.get_running_loop()
        checkpoint = await loop.run_in_executor(
            self._encode_thread,
            Checkpoint,
            settings.model,
            settings.context,
            settings.chat_template,
            settings.attention_statistics,
        )
        self._checkpoint = checkpoint
        self._grammars = checkpoint.grammars
        self._client = await VllmClient.open(settings, checkpoint.max_model_len)
        report = await self._client.report()
        check_report(report, self.settings.async_scheduling)
        worker = report["workers"][0]  # all have the same model, and run the same hooks
        self._missing = worker["missing"]
        self._limits = EngineLimits(
            max_model_len=checkpoint.max_model_len,
            max_rows=report["max_rows"],
            max_batched_tokens=report["max_batched_tokens"],
            blocks=report["blocks"] - 1,  # vLLM never uses one of its blocks
            block_size=report["block_size"],
            num_layers=worker["layers"],
            has_tied_embeddings=worker["has_tied_embeddings"],
        )
        from decoding.vllm_engine.frontend.engine_request_builder import EngineRequestBuilder

        model_config = self._client.llm.model_config
        self._engine_request_builder = await loop.run_in_executor(
            self._encode_thread, EngineRequestBuilder, model_config, checkpoint
        )
        return "cpu"

    async def _warm_up(self) -> tuple[GenerateRequest, Answer]:
        """Run the warm-up request and check that its rows stayed in step.

        Returns:
            The request and its answer.
        """
        before = (await self.report())["counters"]
        request, answer = await super()._warm_up()
        check_lockstep(request, answer, before, (await self.report())["counters"])
        return request, answer

    async def _stop_model(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def report(self) -> Mapping[str, Any]:
        """Return the contents and the counters of the engine core and its worker."""
        return await self.client.report()

    @property
    def counter_help(self) -> Mapping[str, str]:
        return {f"gang_{name}": text for name, text in COUNTER_HELP.items()}

    async def get_counters(self) -> Mapping[str, int]:
        """Return the scheduler's counters."""
        counters: Mapping[str, int] = (await self.report())["counters"]
        return {f"gang_{name}": count for name, count in counters.items()}

    # Requests

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Token, None]:
        """Stream the answer. Closing the generator aborts the gang before the next step.

        Yields:
            The tokens of the answer.
        """
        with self._reserve_request(request) as reservation, self._hold_states(request):
            updated_state = await self._reserve_state(request)
            collectors: list[OutputCollector] = []
            parser: OutputParser | None = None
            is_complete = False
            try:
                request, answer_start, forced_prefix = await self._prepare_start(request)
                members = await self._encode(lambda: self._build_members(request, updated_state, answer_start))
                parser = self._build_parser(request, members, updated_state, answer_start)
                new_tokens = parser.processor.max_new_tokens - len(answer_start.ids)
                collectors = await self._submit(members, request.sampling, new_tokens, request.prompt_logprobs)
                parser.processor.stats.scheduled_time = time.perf_counter()
                while not parser.is_finished:
                    output = await collectors[-1].get()
                    for token in parser.parse(output):
                        reservation.is_running = True
                        if token.finish is not None and token.id in self.checkpoint.eos_token_ids:
                            await self._require_complete(request, parser.token_ids[:-1])
                        is_complete = parser.is_finished
                        if not forced_prefix.consume(token):
                            yield token
            finally:
                if self.is_alive and parser is not None:
                    if parser.is_finished or parser.has_ended:
                        self.client.abort(collectors)  # vLLM does not know of a stop string that has ended the answer
                    else:
                        parser.processor.stats.left = self._abort(collectors, parser)
                if updated_state is not None:
                    if is_complete:
                        self._state_handles.known.add(updated_state.handle)
                    else:
                        self.free_state(updated_state)

    async def probe(self, probe: ProbeRequest) -> tuple[StateHandle, Usage]:
        """Run a probe in one step, so that the head scales of a layer reach all tokens before the next layer runs.

        Returns:
            The state that the probe leaves, and the rows that it ran.
        """
        with self._reserve_probe(probe):
            state, is_complete = self._state_handles.create(), False
            collectors: list[OutputCollector] = []
            try:
                members = await self._encode(lambda: self._build_probe_members(probe, state))
                collectors = await self._submit(members, PROBE_SAMPLING, 1)
                output = await collectors[-1].get()
                raise_failure(output.kv_transfer_params or {})
                is_complete = True
            finally:
                if self.is_alive:
                    self.client.abort(collectors)
                if not is_complete:
                    self.free_state(state)
        self._state_handles.known.add(state.handle)
        return state, Usage(forward_passes=len(members))

    async def load_vectors(self, request: VectorsRequest) -> StateHandle:
        """Load vectors from the operator's folder. The handle depends on their values, so that requests share it.

        Returns:
            The state with the vectors.
        """
        vectors = await self._read_vectors(request, torch.device("cpu"))
        known = self._vector_states.get(request.file)
        if known is not None and known.vectors is vectors:
            return known.state
        state = StateHandle(f"vectors-{hashlib.sha256(vectors.numpy().tobytes()).hexdigest()[:VECTORS_DIGEST]}")
        await self.client.load_vectors(state.handle, vectors)
        self._state_handles.known.add(state.handle)
        self._vector_states[request.file] = VectorsState(vectors, state)
        if known is not None:  # its file has changed
            self.free_state(known.state)
        return state

    async def _submit(
        self,
        members: Sequence[MemberRequest],
        sampling: SamplingParams,
        new_tokens: int,
        prompt_logprobs: int | None = None,
    ) -> list[OutputCollector]:
        """Submit a gang. The last of the returned outputs are those of the main row."""
        build = self._engine_request_builder.build
        requests = await self._encode(lambda: build(members, sampling, new_tokens, prompt_logprobs))
        return await self.client.submit(requests)

    def _abort(self, collectors: Sequence[OutputCollector], parser: OutputParser) -> asyncio.Future[None]:
        """Abort a gang. Once that is done, the stats count the steps whose tokens have not arrived."""

        async def abort(client: VllmClient) -> None:
            generated = await client.abort_and_count_tokens(collectors, len(parser.token_ids))
            parser.processor.stats.forward_passes = parser.rows * generated  # each step runs all rows

        return self.client.run_in_background(abort(self.client))

    async def _require_complete(self, request: GenerateRequest, token_ids: Sequence[int]) -> None:
        """Require that an answer which ends with an end token is complete.

        Where llguidance reaches a limit, vLLM allows the end token only.

        Raises:
            InvalidSchema: The grammar is too complicated to continue.
        """
        grammar = request.sampling.grammar
        if grammar is None:
            return
        accepts = partial(self._grammars.accepts, grammar, token_ids)
        if not await run_in_thread(self._grammar_threads, accepts, "grammar_failed"):
            raise InvalidSchema(TOO_COMPLICATED)

    def _can_prefill_answer(self, request: GenerateRequest) -> bool:
        """Return whether no penalty counts the answer's tokens, no grammar reads them, and no strategy edits them.

        vLLM counts the tokens of a prompt in another way. Of a prompt only the last token is edited.
        """
        sampling = request.sampling
        if sampling.grammar is not None:  # vLLM begins it after the prompt
            return False
        if any(strategy.acts_on_attention() for strategy in request.stack):
            return False
        return sampling.repetition_penalty == 1 and not (sampling.presence_penalty or sampling.frequency_penalty)

    def _build_members(
        self, request: GenerateRequest, updated_state: StateHandle | None, answer_start: AnswerStart
    ) -> list[MemberRequest]:
        checkpoint, limits, sampling = self.checkpoint, self.limits, request.sampling
        if request.continued_tokens and set(sampling.stop_token_ids) & set(sampling.forced_token_ids):
            message = "vLLM would end this answer at a token of the message that it continues: it is in stop_token_ids."
            raise Unsupported(message, param="stop_token_ids")
        # Refuses layers that do not exist.
        find_early_exits(request.stack, limits.num_layers, limits.has_tied_embeddings)
        find_steered_places(select_steering_stack(request.stack, {}), limits.num_layers)
        inputs = self._encode_request(request, answer_start)
        if request.prompt_logprobs is not None and request.prompt.images:
            checkpoint.require_scorable_images()
        first_tokens = self.encoder.find_first_tokens(request.scored_texts)
        if request.sampling.grammar is not None:  # vLLM reports only after scheduling that no token begins
            checkpoint.grammars.compile(request.sampling.grammar)
        return build_members(
            request,
            inputs,
            self._create_gang_id(),
            first_tokens,
            checkpoint.eos_token_ids,
            updated_state,
            answer_start,
            limits.num_layers,
        )

    def _check_length(self, request: GenerateRequest, answer_start: AnswerStart) -> None:
        members = self._build_members(request, None, answer_start)
        compute_max_new_tokens(request, members, self.limits, len(answer_start.ids))

    def _build_probe_members(self, probe: ProbeRequest, state: StateHandle) -> list[MemberRequest]:
        members = build_probe_members(probe, self._encode_prompts(probe.prompts), self._create_gang_id(), state)
        check_probe_fits(members, self.limits)
        return members

    def _build_parser(
        self,
        request: GenerateRequest,
        members: Sequence[MemberRequest],
        updated_state: StateHandle | None,
        answer_start: AnswerStart,
    ) -> OutputParser:
        checkpoint = self.checkpoint
        prefix_length = len(answer_start.ids)
        processor = OutputProcessor(
            request,
            members[0].inputs.without_last(prefix_length),
            prefix_length + compute_max_new_tokens(request, members, self.limits, prefix_length),
            frozenset(checkpoint.eos_token_ids),
            checkpoint.token_text,
            checkpoint.tokenizer,
            updated_state,
            answer_start.ids,
            checkpoint.image_token_id,
        )
        return OutputParser(processor, len(members))

    def _create_gang_id(self) -> str:
        return f"gang-{next(self._gang_numbers)}"

    # Strategy states

    def free_state(self, state: StateHandle) -> None:
        """Free a state, now or with the last request that uses it. The vectors of a file stay until it changes."""
        if any(state == each.state for each in self._vector_states.values()):
            return
        if self._state_handles.free(state) and self.is_alive:
            self.client.free_states([state.handle])

    def _has_state(self, state: StateHandle) -> bool:
        return state.handle in self._state_handles.known

    @contextmanager
    def _hold_states(self, request: GenerateRequest) -> Iterator[None]:
        """Keep the states of a request until it ends.

        Yields:
            Nothing.
        """
        freed: list[StateHandle] = []
        try:
            with self._state_handles.hold(request.states.values()) as freed:
                yield
        finally:
            for state in freed:
                self.free_state(state)

    async def _reserve_state(self, request: GenerateRequest) -> StateHandle | None:
        """Reserve bytes for the state into which the answer is folded, if there is one."""
        strategy = request.state_updater
        if strategy is None:
            return None
        num_bytes = await self._encode(lambda: measure_updated_state(strategy, self.checkpoint.vocab_size))
        return self._state_handles.create(num_bytes)
