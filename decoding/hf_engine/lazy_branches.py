"""Branches that run only at steps that need them. A branch then reads all tokens since its last step in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.prefill import group_prompts, prefill_pruned
from decoding.hf_engine.request import RequestState
from decoding.text.prompt_encoder import ModelInputs


@dataclass(eq=False, slots=True)
class LazyBranch:
    """One branch of a request. It takes no row of the batch, and has a KV state of its own.

    Attributes:
        prompt: The encoded prompt.
        kept_tokens: [layers, prompt tokens] true where the branch sees a token; None if it sees all.
        output: Output of its last pass; None before the first one.
        pending: Tokens of the answer that it has not read.
    """

    prompt: ModelInputs
    kept_tokens: Tensor | None = None
    output: PrefillOutput | None = None
    pending: list[int] = field(default_factory=list)


class LazyBranches:
    """The lazy branches of all requests of a batch."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._branches: dict[int, dict[str, LazyBranch]] = {}  # id of the request -> name -> branch

    def add_request(self, request: RequestState) -> None:
        """Register the lazy branches of a request, if it has some."""
        if request.lazy_branches:
            self._branches[id(request)] = {
                name: LazyBranch(request.inputs[name], request.kept_tokens.get(name)) for name in request.lazy_branches
            }

    def remove_requests(self, requests: Iterable[RequestState]) -> None:
        """Drop the branches of requests."""
        for request in requests:
            self._branches.pop(id(request), None)

    def count(self) -> int:
        """Count the branches."""
        return sum(map(len, self._branches.values()))

    def add_token(self, request: RequestState, token: int) -> None:
        """Record a token of the answer for the branches' next pass."""
        for branch in self._branches.get(id(request), {}).values():
            branch.pending.append(token)

    def run(self, needed: Sequence[tuple[RequestState, Iterable[str]]]) -> list[Mapping[str, Tensor]]:
        """Run branches up to the newest token.

        Each run counts one forward pass, however many tokens the branch reads, as a prompt does.

        Args:
            needed: Requests, and the names of branches that they need.

        Returns:
            For each request, name of a branch -> [vocab] logits after the answer so far.
        """
        by_request = [{name: self._branches[id(request)][name] for name in names} for request, names in needed]
        for (request, _), branches in zip(needed, by_request, strict=True):
            request.stats.forward_passes += len(branches)
        every = [branch for branches in by_request for branch in branches.values()]
        self._prefill([branch for branch in every if branch.output is None])
        self._extend([branch for branch in every if branch.pending])
        return [
            {name: branch.output.logits for name, branch in branches.items() if branch.output}
            for branches in by_request
        ]

    def _prefill(self, branches: Sequence[LazyBranch]) -> None:
        """Run prompts and the tokens after them as if they were one prompt."""
        inputs = [branch.prompt.with_tokens(branch.pending) for branch in branches]
        full = [number for number, branch in enumerate(branches) if branch.kept_tokens is None]
        for group in group_prompts([inputs[number] for number in full]):
            numbers = [full[number] for number in group]
            outputs = self.model.prefill([inputs[number] for number in numbers])
            for number, output in zip(numbers, outputs, strict=True):
                branches[number].output = output
        for branch, prompt in zip(branches, inputs, strict=True):
            if branch.kept_tokens is not None:
                kept = pad(branch.kept_tokens, (0, len(branch.pending)), value=True)
                branch.output = prefill_pruned(self.model, prompt, kept)
            branch.pending.clear()

    def _extend(self, branches: Sequence[LazyBranch]) -> None:
        if branches:
            states = [branch.output for branch in branches if branch.output]
            with self.model.attention_tap.edit((), self._build_hidden_keys(branches)):
                outputs = self.model.extend(states, [[branch.pending] for branch in branches])
            for branch, (output,) in zip(branches, outputs, strict=True):
                branch.output = output
                branch.pending.clear()

    def _build_hidden_keys(self, branches: Sequence[LazyBranch]) -> Tensor | None:
        """Build [layers, rows, keys] true where a row of `_extend` does not see a key; None if all rows see all."""
        if all(branch.kept_tokens is None for branch in branches):
            return None
        lengths = [branch.output.length for branch in branches if branch.output]
        keys = max(lengths) + max(len(branch.pending) for branch in branches)
        hidden_keys = torch.zeros(
            self.model.num_layers, len(branches), keys, dtype=torch.bool, device=self.model.device
        )
        for row, (branch, length) in enumerate(zip(branches, lengths, strict=True)):
            if branch.kept_tokens is not None:
                first = max(lengths) - length  # states are padded on the left
                hidden_keys[:, row, first : first + branch.kept_tokens.shape[1]] = ~branch.kept_tokens
        return hidden_keys
