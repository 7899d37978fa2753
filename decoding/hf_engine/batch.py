"""The running batch: all rows of all requests, extended by one token a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.errors import BadRequest
from decoding.hf_engine.cpu.step_threads import limit_threads
from decoding.hf_engine.kv_cache.aligned_cache import HEADROOM
from decoding.hf_engine.lazy_branches import LazyBranches
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.pass_hook_runner import PassHookRunner
from decoding.hf_engine.prefill import PrefillOutputs, get_head_scales
from decoding.hf_engine.request import RequestState
from decoding.hf_engine.sampler import sample_tokens
from decoding.hf_engine.taps.head import LayerScales
from decoding.outputs import Token
from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.logits_hooks import CHANGED, Failures, HookResults, LogitsHookRunner
from decoding.requests import MAIN

StepOutputs = list[tuple[RequestState, Token | Exception]]
RowIndex = dict[str, int]  # name of a prompt -> row of the logits


@dataclass(slots=True)
class Row:
    """One prompt of a request. Its number in the batch is its number in the cache."""

    request: RequestState
    name: str
    next_position: int  # of the token that it reads next


class Batch:
    """Requests that decode together. The worker thread owns it."""

    def __init__(self, model: Model, max_slots: int) -> None:
        self.model = model
        self.cache = model.create_cache(max_slots)
        self.lazy_branches = LazyBranches(model)
        self.rows: list[Row] = []
        self._head_scales: LayerScales | None = None
        self._pass_hook_runner = PassHookRunner(model, [])
        self._hook_runner = LogitsHookRunner()
        self._tokens = torch.empty(0, dtype=torch.long, device=model.device)  # [rows] that the next step reads

    @property
    def requests(self) -> list[RequestState]:
        """The requests in the order of their first rows."""
        return list({id(row.request): row.request for row in self.rows}.values())

    @property
    def has_room_for_step(self) -> bool:
        """Whether the KV cache stays within its limit in the next step."""
        return self.cache.has_free_column or self._num_cached_rows <= self.cache.count_fitting_rows(self.cache.width)

    def count_excess_rows(self, requests: Sequence[RequestState]) -> tuple[int, int]:
        """Count the rows that must leave before the KV cache has room for requests.

        Args:
            requests: Requests that join the batch.

        Returns:
            The number of rows, and how many rows the KV cache holds then, with room for some steps. Lazy branches
            count as rows.
        """
        rows = self._num_cached_rows + sum(1 + len(request.source.branches) for request in requests)
        longest = max(self.cache.width, *(request.max_prompt_length for request in requests))
        capacity = self.cache.count_fitting_rows(longest + HEADROOM)
        return max(0, rows - capacity), capacity

    @property
    def _num_cached_rows(self) -> int:
        """Rows and lazy branches: a lazy branch has no row, but keys and values like one."""
        return len(self.rows) + self.lazy_branches.count()

    def add_requests(self, requests: Sequence[RequestState], prefills: PrefillOutputs) -> StepOutputs:
        """Add the rows of new requests, and of preempted ones, which then recompute their answers.

        Args:
            requests: Requests that join the batch.
            prefills: Outputs of their prompts.

        Returns:
            The first token of each new request, or the log-probabilities of its scored texts or of its prompt.
        """
        scored = [request for request in requests if request.prompt_scores is not None]
        requests = [request for request in requests if request.prompt_scores is None]
        for request in requests:
            self.lazy_branches.add_request(request)
            request.early_logits = prefills[id(request), MAIN].early_logits
        # A request for scored texts ends with its prompt, so it needs no row.
        joining = [request for request in requests if not request.source.scored_texts]
        outputs = self._add_rows(joining, prefills) if joining else []
        outputs += [
            (request, self._score_texts(request, prefills)) for request in requests if request.source.scored_texts
        ]
        return outputs + [(request, request.add_prompt_logprobs()) for request in scored]

    def _add_rows(self, requests: Sequence[RequestState], prefills: PrefillOutputs) -> StepOutputs:
        """Add rows, and sample the first token of each new request."""
        base = len(self.rows)
        preempted = [request for request in requests if request.generated_ids]
        for request in requests:
            for name in request.row_prompts:
                prefill = prefills[id(request), name]
                self.cache.add_row(prefill.key_values)
                self.rows.append(Row(request, name, prefill.next_position))
        logits = torch.stack([prefills[id(row.request), row.name].logits for row in self.rows[base:]])
        self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(len(self.rows) - base)])
        self._refresh_rows()
        for request in preempted:
            request.recompute_ids = deque(request.generated_ids)
            for token in request.generated_ids:
                self.lazy_branches.add_token(request, token)
        self._recompute(preempted)
        return self._sample([request for request in requests if request not in preempted], logits, base)

    def step(self) -> StepOutputs:
        """Decode one token for every request. A preempted request first recomputes its answer, one token a step.

        The recomputation runs the same passes as the first time, so it is exact for every strategy.

        Returns:
            The token of each request that does not recompute its answer.
        """
        with limit_threads(self.model.step_threads):
            with self._pass_hook_runner.apply_to_step(self.cache):
                positions = [row.next_position for row in self.rows]
                logits = self.model.decode(self._tokens, positions, self.cache, self._head_scales)
            recomputing = [request for request in self.requests if request.recompute_ids]
            for row in self.rows:
                row.next_position += 1
                row.request.stats.forward_passes += not row.request.recompute_ids
            self._recompute(recomputing)
            return self._sample([request for request in self.requests if request not in recomputing], logits, base=0)

    def remove_requests(self, requests: Iterable[RequestState]) -> None:
        """Free the rows of requests. Requests that are not in the batch are ignored."""
        requests = list(requests)
        self.lazy_branches.remove_requests(requests)
        removed = {id(request) for request in requests}
        for number in reversed(range(len(self.rows))):
            if id(self.rows[number].request) in removed:
                self.cache.remove_row(number)
                self.rows[number], self._tokens[number] = self.rows[-1], self._tokens[-1].clone()
                self.rows.pop()
                self._tokens = self._tokens[:-1]
        self._refresh_rows()

    def _recompute(self, requests: Sequence[RequestState]) -> None:
        """Give the rows of preempted requests the next token of the answers that they recompute."""
        tokens = {id(request): request.recompute_ids.popleft() for request in requests}
        for number, row in enumerate(self.rows):
            if id(row.request) in tokens:
                self._tokens[number] = tokens[id(row.request)]

    def _sample(self, requests: Sequence[RequestState], logits: Tensor, base: int) -> StepOutputs:
        """Sample a token for each request.

        Args:
            requests: Requests whose rows are among the logits.
            logits: [rows, vocab] of the batch's rows from number `base` on.
            base: Number of a row.

        Returns:
            For each request its token, or the exception that fails it.
        """
        if not requests:
            return []
        index = self._index_rows(base)
        rows = [index[id(request)] for request in requests]
        main_rows = copy_numbers([own[MAIN] for own in rows], torch.long, logits.device)
        raw = mask_forbidden(requests, logits[main_rows])
        results, failures = self._run_logits_hooks(requests, rows, raw, logits)
        sampled = sample_tokens(results.scores, [request.sampler_state for request in requests])
        # The token of a main row goes to all rows of its request.
        pairs = [(base + row, number) for number, own in enumerate(rows) for row in own.values()]
        batch_rows, request_numbers = copy_numbers(pairs, torch.long, sampled.device).unbind(1)
        self._tokens[batch_rows] = sampled[request_numbers]
        outputs: StepOutputs = []
        for number, (token, status) in enumerate(read_tokens(sampled, results.status)):
            request = requests[number]
            self.lazy_branches.add_token(request, token)
            failure = failures.get(number) or results.get_failure(number, status)
            if failure is not None:
                outputs.append((request, failure))
                continue
            try:
                request.update_state(raw[number])
                with_grounding = request.source.grounding_branch is not None
                own_logits = {name: logits[row] for name, row in rows[number].items()} if with_grounding else {}
                outputs.append(
                    (request, request.add_token(token, results.scores[number], own_logits, status == CHANGED))
                )
            except BadRequest as error:  # of its grammar, which does not fail other requests
                # The traceback is not logged, and would keep this frame with the automaton of the grammar in a cycle.
                outputs.append((request, error.with_traceback(None)))
            except Exception as error:  # of its state
                outputs.append((request, error))
        return outputs

    def _score_texts(self, request: RequestState, prefills: PrefillOutputs) -> Token | Exception:
        rows = {name: number for number, name in enumerate(request.row_prompts)}
        logits = torch.stack([prefills[id(request), name].logits for name in rows])
        raw = logits[[rows[MAIN]]]
        results, failures = self._run_logits_hooks([request], [rows], raw, logits)
        status = int(results.status[0])
        failure = failures.get(0) or results.get_failure(0, status)
        return failure or request.add_text_logprobs(results.scores[0], status == CHANGED)

    def _run_logits_hooks(
        self, requests: Sequence[RequestState], rows: Sequence[RowIndex], raw: Tensor, logits: Tensor
    ) -> tuple[HookResults, Failures]:
        """Run the lazy branches that this step needs, then the `logits` hooks.

        Args:
            requests: Requests of the step.
            rows: Their rows among the logits.
            raw: [requests, vocab] of the main rows, with forbidden tokens at -inf.
            logits: [rows, vocab].

        Returns:
            The results of the hooks, and number of a request -> exception of a hook that ran before them.
        """
        hooks = [request.hooks for request in requests]
        failures: Failures = {number: each.failure for number, each in enumerate(requests) if each.failure}
        if any(request.lazy_branches for request in requests):
            needed, lazy_failures = self._hook_runner.find_needed_branches(hooks, raw)
            failures |= lazy_failures
            if needed:
                rows, logits = self._run_lazy_branches(requests, rows, logits, needed)
        num_tokens = [request.output_processor.num_tokens for request in requests]
        position = copy_numbers(num_tokens, torch.long, raw.device)[:, None]
        early_logits = [request.early_logits for request in requests]
        return self._hook_runner.run(hooks, rows, raw, logits, position, early_logits), failures

    def _run_lazy_branches(
        self,
        requests: Sequence[RequestState],
        rows: Sequence[RowIndex],
        logits: Tensor,
        needed: Mapping[int, Sequence[str]],
    ) -> tuple[Sequence[RowIndex], Tensor]:
        """Run lazy branches, and append their rows to the logits."""
        branch_logits = self.lazy_branches.run([(requests[number], names) for number, names in needed.items()])
        rows, added = list(rows), [logits]
        for number, by_name in zip(needed, branch_logits, strict=True):
            base = sum(map(len, added))
            rows[number] = {**rows[number], **{name: base + offset for offset, name in enumerate(by_name)}}
            added.append(torch.stack(list(by_name.values())))
        return rows, torch.cat(added)

    def _index_rows(self, base: int) -> dict[int, RowIndex]:
        """Map the id of each request to its rows, counted from row `base` on."""
        index: dict[int, RowIndex] = {}
        for number, row in enumerate(self.rows[base:]):
            index.setdefault(id(row.request), {})[row.name] = number
        return index

    def _refresh_rows(self) -> None:
        """Rebuild all that depends on the rows of the batch. Head scales act on main rows only."""
        self._pass_hook_runner = PassHookRunner(self.model, [(row.request, row.name) for row in self.rows])
        self._hook_runner = LogitsHookRunner()
        self._head_scales = self.model.head_tap.expand_scales(
            [get_head_scales(row.request, row.name) for row in self.rows]
        )


def read_tokens(sampled: Tensor, status: Tensor) -> list[tuple[int, int]]:
    """Read the tokens of a step. A step waits for the device here, and elsewhere only for lazy branches and logprobs.

    Args:
        sampled: [requests] token ids.
        status: [requests], as in `HookResults`.

    Returns:
        Token id and status of each request.
    """
    return torch.stack([sampled, status], 1).tolist()


def mask_forbidden(requests: Sequence[RequestState], raw: Tensor) -> Tensor:
    """Mask tokens that a request forbids: by its grammar, its ruled-out phrases or its `min_tokens`.

    They are masked before the strategies, so that a plausibility cut keeps a token that is allowed.

    Args:
        requests: Requests of the step.
        raw: [requests, vocab] logits of their main rows. They are changed in place.

    Returns:
        `raw`.
    """
    for row, request in enumerate(requests):
        if request.grammar_mask is not None:
            raw[row].masked_fill_(~request.grammar_mask.allowed, -torch.inf)
        if request.answer_start.ruled_out:
            forbidden = request.answer_start.find_forbidden_tokens(request.output_ids)
            raw[row].index_fill_(-1, copy_numbers(forbidden, torch.long, raw.device), -torch.inf)
        if request.sampler_state.is_below_min_tokens:
            raw[row].index_fill_(-1, request.sampler_state.eos_token_ids, -torch.inf)
    return raw
