"""What acts on the attention heads: the factors that strategies have put on them, and probes that look at them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import structlog
import torch
from torch import Tensor

from decoding.errors import Overloaded
from decoding.onion import factors
from decoding.vllm_engine.look import Look
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.memories import Memories
from decoding.vllm_engine.projection import tapped
from decoding.vllm_engine.rows import FAILED, Notes, Rows

log = structlog.get_logger(__name__)


class Heads:
    """Of one model runner, on the model that it has loaded and not yet compiled."""

    def __init__(self, runner: Any, memories: Memories) -> None:
        """Raises:
        ValueError: the heads of this model cannot be told apart.
        """
        limits = runner.vllm_config.scheduler_config
        self.memories = memories
        self.scales = tapped(
            runner.model,
            limits.max_num_seqs,
            runner.max_num_tokens,
            runner.model_config.dtype,
            runner.device,
            tap=self,
        )
        self._looks: list[Look] = []
        self._is_scaling = False
        self._layout: tuple[object, ...] = ()
        self._owners: Tensor | None = None  # [tokens] of the step, None where nobody's heads are scaled

    @property
    def layers(self) -> int:
        return self.scales.factors.shape[0]

    @property
    def is_idle(self) -> bool:
        return not (self._is_scaling or self._looks)

    def before_forward(self, rows: Rows, notes: Notes) -> None:
        layout = (tuple(rows.ids), rows.starts.tobytes())
        if layout != self._layout:
            self._owners = self._assign(rows, notes)
            self._layout = layout
        if self._owners is not None:
            self.scales.owners[: len(self._owners)] = self._owners
            self._is_scaling = True
        self._looks = list(self._probes(rows))
        if self._looks:
            run_in_python()

    def after_forward(self, rows: Rows, notes: Notes) -> None:
        """Between steps no token is anybody's: the next step may have no gang in it, and will not call."""
        if self._is_scaling:
            self.scales.owners.fill_(self.scales.nobody)
            self._is_scaling = False
        for look in self._looks:
            self._keep(look, notes)
        self._looks = []

    def edit(self, layer: int, heads: Tensor) -> Tensor:
        for look in self._looks:
            look.at(layer, heads)
        return heads

    def _assign(self, rows: Rows, notes: Notes) -> Tensor | None:
        """Each scaled row's factors into its place; [tokens] whose factors are each token's."""
        owners = np.full(len(rows.ids), self.scales.nobody)
        for row, member in rows.members.items():
            try:
                scale = self._factors(member)
                if scale is not None:
                    self.scales.factors[:, row] = scale
                    owners[row] = row
            except Exception:  # a strategy's fault, which must not end the others' answers
                log.exception("a strategy failed", strategies=[strategy.name for strategy in member.stack])
                notes.setdefault(rows.ids[row], {})["failed"] = FAILED
        if (owners == self.scales.nobody).all():
            return None
        return torch.from_numpy(owners.repeat(np.diff(rows.starts))).to(self.scales.owners.device)

    def _factors(self, member: Member) -> Tensor | None:
        """[layers, heads]. Branches have no stack: their heads stay as they are."""
        stack = tuple(strategy.build() for strategy in member.stack)
        recalled = {owner: self.memories.recall(handle) for owner, handle in member.memories.items()}
        layers, _, heads = self.scales.factors.shape
        return factors(stack, recalled, (layers, heads))

    def _probes(self, rows: Rows) -> Iterator[Look]:
        """Those whose prompts are all here, and whole. The scheduler sees to it; a probe that is not has no memory."""
        gangs: dict[str, dict[str, int]] = defaultdict(dict)
        for row, member in rows.members.items():
            if member.whole and rows.draws[row] and rows.computed[row] == 0:
                name = member.probing.main if member.probing else member.name
                gangs[member.gang][name] = row
        for places in gangs.values():
            members = [rows.members[row] for row in places.values()]
            probing = next((member.probing for member in members if member.probing), None)
            if probing is not None and len(places) == members[0].size:
                yield Look(probing, places, rows, self.layers)

    def _keep(self, look: Look, notes: Notes) -> None:
        try:
            if look.failure is not None:
                raise look.failure
            self.memories.keep(look.probing.handle, look.memory)
        except Overloaded as error:
            notes.setdefault(look.request, {}).update(failed=error.message, code=error.code)
        except Exception:
            log.exception("a probe failed", strategy=look.probing.owner.name)
            notes.setdefault(look.request, {})["failed"] = "What the probe saw could not be remembered."


def run_in_python() -> None:
    """This step's layers run uncompiled and uncaptured, so that they call us."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    context.skip_compiled = True
    context.cudagraph_runtime_mode = CUDAGraphMode.NONE
