"""All hooks of one step: taps in the forward pass, and the strategies' hooks around the sampler.

The adapter of a model runner calls `StepHookRunner` around its own work. The rows of the gangs and their index tensors
are kept for as long as the same rows are in the batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.errors import EngineFailed
from decoding.pipeline.composition import attribute_errors, copy_numbers
from decoding.pipeline.early_exits import ExitsByRow, find_early_exits
from decoding.pipeline.grounding import compute_grounding, compute_text_logprobs
from decoding.pipeline.logits_hooks import HookResults, LogitsHookRunner, RequestHooks, to_index
from decoding.requests import MAIN
from decoding.tensor_hooks import Activations, EarlyExits
from decoding.text.prompt_encoder import AnswerStart
from decoding.vllm_engine.member import Member, build_stack
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap
from decoding.vllm_engine.worker.newest_tokens import PLACEHOLDER, NewestTokens, forbid_completions
from decoding.vllm_engine.worker.pending_token_info import PendingTokenInfo
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure
from decoding.vllm_engine.worker.step_tap import StepTap


class StepHookRunner:
    """The hooks of one model runner.

    In every step that has a gang in it, the adapter calls `before_forward`, `after_forward`, `before_sampling`,
    `after_sampling` and `take_token_info`, in this order. An exception in one of them fails the gangs of the step. All
    other requests go on, and so does the engine core of vLLM, which would stop on it.

    Attributes:
        states: Store of the strategy states.
        taps: The taps that the model allows, in the order of their calls.
        sampler_hook_runner: The hooks around the sampler.
        missing: Capability that the model lacks -> reason.
        token_info: Information about the tokens of this step.
    """

    def __init__(self, device: torch.device) -> None:
        self.states = StateStore()
        self.taps: list[StepTap] = []
        self.sampler_hook_runner = SamplerHookRunner(self.states, device)
        self.missing: dict[str, str] = {}
        self.token_info: TokenInfo = {}
        self._pending: PendingTokenInfo | None = None

    def add_early_exit_tap(self, tap: GangEarlyExitTap) -> None:
        """Add the tap whose logits the hooks around the sampler read."""
        self.taps.append(tap)
        self.sampler_hook_runner.early_exit_tap = tap

    def before_forward(self, rows: StepRows) -> None:
        """Set up the taps."""
        self.token_info, self._pending = {}, None
        for tap in self.taps:
            with self._isolate_failures(rows):
                tap.before_forward(rows, self.token_info)

    def after_forward(self, rows: StepRows) -> None:
        """Reset the taps, and store the states of probes."""
        for tap in self.taps:
            with self._isolate_failures(rows):
                tap.after_forward(rows, self.token_info)

    def before_sampling(self, rows: StepRows, logits: Tensor) -> Tensor:
        """Run the `logits` hooks.

        Args:
            rows: Rows of the step.
            logits: [rows, vocab] as the model gave them. The tensor may be overwritten.

        Returns:
            [rows, vocab] with the scores of the strategies in the main rows.
        """
        with self._isolate_failures(rows):
            return self.sampler_hook_runner.before_sampling(rows, logits, self.token_info)
        return logits

    def after_sampling(self, rows: StepRows, sampled: Tensor) -> None:
        """Copy the token of each main row to its branches.

        Args:
            rows: Rows of the step.
            sampled: [rows, 1] sampled tokens, changed in place.
        """
        with self._isolate_failures(rows):
            self._pending = self.sampler_hook_runner.after_sampling(rows, sampled, self.token_info)

    def take_token_info(self) -> PendingTokenInfo:
        """Return the information about the tokens of this step, and drop it."""
        pending = PendingTokenInfo(self.token_info) if self._pending is None else self._pending
        self.token_info, self._pending = {}, None
        return pending

    @contextmanager
    def _isolate_failures(self, rows: StepRows) -> Iterator[None]:
        """Fail all gangs of the step if the block raises, and reset the hooks.

        Args:
            rows: Rows of the step.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            for row in rows.members:
                record_failure(self.token_info, rows.request_ids[row], error, "step_hooks_failed")
            self._pending = None
            self.sampler_hook_runner.reset()
            for tap in self.taps:
                tap.reset()

    def get_stats(self) -> dict[str, Any]:
        """Return the state counts and the limits of this model runner, for the server process.

        Returns:
            The number and the bytes of the strategy states, the reason for each capability that the model lacks, the
            number of layers for early exits (0 if they cannot be tapped), and whether the model's head is its input
            embedding.
        """
        tap = self.sampler_hook_runner.early_exit_tap
        return {
            "states": len(self.states),
            "state_bytes": self.states.num_bytes,
            "missing": self.missing,
            "layers": 0 if tap is None else tap.num_layers,
            "has_tied_embeddings": tap is not None and tap.has_tied_embeddings,
        }


@dataclass(frozen=True, slots=True)
class GangRows:
    """A complete gang of the step."""

    request_id: str  # of the main row
    member: Member  # the main one
    hooks: RequestHooks
    early_exits: Mapping[str, EarlyExits]  # strategy -> its early exits
    rows: Mapping[str, int]  # MAIN or name of a branch -> row
    end_tokens: Tensor | None = None  # [n] tokens after which no logits are folded into a state

    @property
    def main_row(self) -> int:
        return self.rows[MAIN]

    def count_tokens(self, rows: StepRows) -> int:
        """Return the number of tokens of the answer so far, its prefix included."""
        return int(rows.num_generated_tokens[self.main_row]) + self.member.answer_prefix_length

    def find_last_tokens(self, rows: StepRows) -> list[int]:
        """Return the tokens of the answer that may begin a ruled-out sequence, with vLLM's placeholders."""
        end = int(rows.num_tokens[self.main_row])
        count = min(self.longest_beginning, self.count_tokens(rows))
        last_ids: list[int] = rows.token_ids[self.main_row, end - count : end].tolist()
        return last_ids

    @property
    def longest_beginning(self) -> int:
        """Length of the longest ruled-out sequence, less one; 0 if none is ruled out."""
        return max(map(len, self.member.ruled_out), default=1) - 1


@dataclass(frozen=True, slots=True)
class PendingStep:
    """Values of the main rows before the sampler, which may change its logits in place."""

    raw: Tensor  # [gangs, vocab]
    results: HookResults
    grounding: Mapping[int, Tensor]  # number of a gang -> [vocab] log-probability with minus without the image


class SamplerHookRunner:
    """The hooks of one model runner around its sampler."""

    def __init__(self, states: StateStore, device: torch.device) -> None:
        self.states = states
        self.device = device
        self.early_exit_tap: GangEarlyExitTap | None = None  # None: the model's layers cannot be tapped
        self._runner = LogitsHookRunner()
        self._layout: tuple[object, ...] = ()
        self._gangs: list[GangRows] = []
        self._hooks: list[RequestHooks] = []  # of the gangs
        self._rows: list[Mapping[str, int]] = []  # of the gangs
        self._exits: ExitsByRow = {}
        self._has_lazy_branches = False
        self._main_rows, self._main_rows_of_branches, self._branch_rows = (to_index([], device) for _ in range(3))
        self._pending: PendingStep | None = None
        self._newest_tokens = NewestTokens()
        self._has_ended: dict[str, Tensor] = {}  # request id -> [] whether the answer had ended before the step

    def reset(self) -> None:
        """Drop the rows of the last step, so that the next one finds its gangs anew."""
        self._layout, self._gangs, self._exits, self._pending = (), [], {}, None
        self._main_rows, self._main_rows_of_branches, self._branch_rows = (to_index([], self.device) for _ in range(3))
        self._newest_tokens.clear()
        self._has_ended = {}

    # Before the sampler

    def before_sampling(self, rows: StepRows, logits: Tensor, token_info: TokenInfo) -> Tensor:
        """Run the `logits` hooks on the main rows. Gangs that are not complete in this step are left alone.

        Args:
            rows: Rows of the step.
            logits: [rows, vocab] as the model gave them. The tensor may be overwritten.
            token_info: Receives failures.

        Returns:
            [rows, vocab], in float32 if there is a gang.
        """
        if rows.layout != self._layout:
            self._arrange(rows, token_info)
        self._pending = None
        if not self._gangs:
            return logits
        logits = logits.float()
        grounding = self._compute_grounding(logits)
        self._mask_forbidden(rows, logits)
        raw = logits[self._main_rows]
        visible, failures = self._select_visible_rows(raw)
        generated = [gang.count_tokens(rows) for gang in self._gangs]
        position = copy_numbers(generated, torch.long, self.device)[:, None]
        results = self._runner.run(self._hooks, visible, raw, logits, position, self._compute_early_logits())
        results.failures |= failures
        self._pending = PendingStep(raw, results, grounding)
        if results.scores is not raw:
            logits[self._main_rows] = results.scores
        return logits

    def _select_visible_rows(self, raw: Tensor) -> tuple[Sequence[Mapping[str, int]], dict[int, Exception]]:
        """Return the rows that the hooks of each gang receive, and the failures of `needs_branches` hooks.

        Lazy branches run in every step here. Where a strategy does not need them, it does not receive them, so that
        its scores are those of an engine that skips them.
        """
        if not self._has_lazy_branches:
            return self._rows, {}
        needed, failures = self._runner.find_needed_branches(self._hooks, raw)
        return [
            {
                name: row
                for name, row in gang.rows.items()
                if name not in gang.hooks.lazy_branches or name in needed.get(number, ())
            }
            for number, gang in enumerate(self._gangs)
        ], failures

    def _compute_early_logits(self) -> list[Mapping[str, Tensor]] | None:
        """Return strategy -> [exits, vocab] for each gang. None: no strategy reads early exits."""
        if not self._exits or self.early_exit_tap is None:
            return None
        early_logits = self.early_exit_tap.compute_logits(self._exits)
        return [early_logits.get(gang.main_row, {}) for gang in self._gangs]

    def _mask_forbidden(self, rows: StepRows, logits: Tensor) -> None:
        """Forbid ruled-out phrases and the end of answers that are too short, in place.

        vLLM forbids them after the strategies. A plausibility cut may have kept the forbidden token alone by then.
        """
        for gang in self._gangs:
            forbidden: list[int] = []
            if gang.count_tokens(rows) < gang.member.min_tokens:
                forbidden += gang.member.eos_token_ids
            if gang.member.ruled_out:
                last_ids = gang.find_last_tokens(rows)
                if PLACEHOLDER in last_ids:
                    newest = self._newest_tokens.fill_in(gang.request_id, last_ids, self.device)
                    forbid_completions(logits[gang.main_row], gang.member.ruled_out, newest)
                else:
                    forbidden += AnswerStart(ruled_out=gang.member.ruled_out).find_forbidden_tokens(last_ids)
            if forbidden:
                logits[gang.main_row].index_fill_(-1, copy_numbers(forbidden, torch.long, self.device), -torch.inf)

    def _compute_grounding(self, logits: Tensor) -> dict[int, Tensor]:
        """Return the [vocab] grounding of each token, by number of a gang."""
        return {
            number: compute_grounding(logits[gang.main_row], logits[gang.rows[gang.member.grounding_branch]])
            for number, gang in enumerate(self._gangs)
            if gang.member.grounding_branch is not None
        }

    # After the sampler

    def after_sampling(self, rows: StepRows, sampled: Tensor, token_info: TokenInfo) -> PendingTokenInfo:
        """Copy the token of each main row to its branches, and collect the information for the server process.

        Nothing here waits for the device.

        Args:
            rows: Rows of the step.
            sampled: [rows, 1] sampled tokens, changed in place.
            token_info: Information that the host knows already. It receives failures.

        Returns:
            The information about the tokens of the main rows.
        """
        self._force_tokens(rows, sampled)
        if len(self._branch_rows):
            sampled[self._branch_rows] = sampled[self._main_rows_of_branches]
        info, pending = PendingTokenInfo(token_info), self._pending
        self._pending = None
        tokens = sampled[self._main_rows, 0].long()
        own = {gang.request_id: tokens[number : number + 1] for number, gang in enumerate(self._gangs)}
        if pending is not None:
            info.add_results(pending.results, list(own))
            for number, gang in enumerate(self._gangs):
                self._add_values(info, gang, number, own[gang.request_id], pending)
                if number not in pending.results.failures:
                    self._update_state(gang, pending.raw[number], token_info)
            info.start_copy()
        self._remember_tokens(own)
        return info

    def _add_values(
        self, info: PendingTokenInfo, gang: GangRows, number: int, token: Tensor, pending: PendingStep
    ) -> None:
        """Add what the server process needs to know about the [1] token of a gang."""
        scores = pending.results.scores[number]
        if number in pending.grounding:
            info.add_value(gang.request_id, "grounding", pending.grounding[number].gather(0, token))
        if gang.member.forced_token_ids:  # vLLM ranks the sampled token, which may be another one
            info.add_value(gang.request_id, "logprob", scores.log_softmax(-1).gather(0, token))
        if first_tokens := gang.member.first_tokens:
            logprobs = compute_text_logprobs(scores, first_tokens)
            info.add_value(gang.request_id, "text_logprobs", logprobs, list(first_tokens))

    def _remember_tokens(self, tokens: Mapping[str, Tensor]) -> None:
        """Keep the tokens that the next step needs and that the host may not know by then.

        Args:
            tokens: Request id -> [1] token.
        """
        self._newest_tokens.append(
            {
                gang.request_id: (tokens[gang.request_id], gang.longest_beginning)
                for gang in self._gangs
                if gang.longest_beginning
            }
        )
        earlier, self._has_ended = self._has_ended, {}
        for gang in self._gangs:
            if gang.end_tokens is not None:
                is_end = (tokens[gang.request_id] == gang.end_tokens).any()
                before = earlier.get(gang.request_id)
                self._has_ended[gang.request_id] = is_end if before is None else is_end | before

    def _force_tokens(self, rows: StepRows, sampled: Tensor) -> None:
        """Replace sampled tokens by the forced first tokens of the answer."""
        for gang in self._gangs:
            generated, forced = rows.num_generated_tokens[gang.main_row], gang.member.forced_token_ids
            if generated < len(forced):
                sampled[gang.main_row] = forced[generated]

    def _update_state(self, gang: GangRows, raw: Tensor, token_info: TokenInfo) -> None:
        """Fold the raw logits, [vocab], into the state of the answer.

        Under asynchronous scheduling a step may follow the end of the answer. It leaves the state as it is.

        Requests do not share these calls: their states would be views of one tensor, which the last one keeps alive.
        """
        update = gang.member.state_update
        if update is None:
            return
        try:
            (strategy,) = build_stack((update.strategy,))
            with attribute_errors(strategy):
                earlier = self.states.get_or_empty(update.handle)
                state = strategy.update_state(earlier, Activations(logits=raw))
            has_ended = self._has_ended.get(gang.request_id)
            if has_ended is not None and earlier:
                state = {name: torch.where(has_ended, earlier[name], tensor) for name, tensor in state.items()}
            self.states.put(update.handle, state)
        except Exception as error:
            record_failure(token_info, gang.request_id, error, "update_state_failed")

    # Rows of the gangs

    def _arrange(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Find the complete gangs of the step and index their rows."""
        by_gang: dict[str, dict[str, int]] = defaultdict(dict)
        for row, member in rows.members.items():
            if rows.is_sampling[row]:
                by_gang[member.gang][member.name] = row
        known = {gang.request_id: (gang.hooks, gang.early_exits, gang.end_tokens) for gang in self._gangs}
        self._gangs = []
        for rows_by_name in by_gang.values():
            if MAIN not in rows_by_name or len(rows_by_name) < rows.members[rows_by_name[MAIN]].size:
                continue
            member, request_id = rows.members[rows_by_name[MAIN]], rows.request_ids[rows_by_name[MAIN]]
            try:
                hooks, exits, end_tokens = known.get(request_id) or self._build_request_hooks(member)
            except Exception as error:
                record_failure(token_info, request_id, error, "hooks_not_built")
                hooks, exits, end_tokens = RequestHooks.from_stack((), member.branches, {}), {}, None
            self._gangs.append(GangRows(request_id, member, hooks, exits, rows_by_name, end_tokens))
        pairs = [(gang.main_row, row) for gang in self._gangs for name, row in gang.rows.items() if name != MAIN]
        self._hooks = [gang.hooks for gang in self._gangs]
        self._rows = [gang.rows for gang in self._gangs]
        self._exits = {gang.main_row: gang.early_exits for gang in self._gangs if gang.early_exits}
        self._has_lazy_branches = any(hooks.lazy_branches for hooks in self._hooks)
        self._main_rows = to_index([gang.main_row for gang in self._gangs], self.device)
        self._main_rows_of_branches = to_index([main_row for main_row, _ in pairs], self.device)
        self._branch_rows = to_index([row for _, row in pairs], self.device)
        self._layout = rows.layout

    def _build_request_hooks(self, member: Member) -> tuple[RequestHooks, Mapping[str, EarlyExits], Tensor | None]:
        """Build the strategies of a gang.

        Returns:
            Their hooks, their early exits by strategy, and the [n] tokens after which no logits are folded.

        Raises:
            EngineFailed: A strategy reads early exits, and the layers are not tapped.
        """
        states = self.states.get_all(member.states)
        stack, tap, update = build_stack(member.stack), self.early_exit_tap, member.state_update
        hooks = RequestHooks.from_stack(stack, member.branches, states)
        end_tokens = to_index(update.end_token_ids, self.device) if update and update.end_token_ids else None
        if not any("early_exit_layers" in strategy.list_hooks() for strategy in stack):
            return hooks, {}, end_tokens
        if tap is None:
            raise EngineFailed("The layers of the model are not tapped.")
        return hooks, find_early_exits(stack, tap.num_layers, tap.has_tied_embeddings), end_tokens
