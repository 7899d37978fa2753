"""What stands next to the model: memories, the mixing of rows, and whatever acts inside the layers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from decoding.vllm_engine.memories import Memories
from decoding.vllm_engine.mixing import Mixer
from decoding.vllm_engine.rows import Notes, Rows


class Inside(Protocol):
    """Acts between the layers of the model."""

    def before_forward(self, rows: Rows, notes: Notes) -> None: ...

    def after_forward(self, rows: Rows, notes: Notes) -> None: ...


class Stage:
    """Of one model runner. The runner's adapter calls it, in this order, at every step that has a gang in it."""

    def __init__(self, device: torch.device) -> None:
        self.memories = Memories()
        self.mixer = Mixer(self.memories, device)
        self.inside: Inside | None = None
        self.notes: Notes = {}

    def before_forward(self, rows: Rows) -> None:
        self.notes = {}
        if self.inside is not None:
            self.inside.before_forward(rows, self.notes)

    def after_forward(self, rows: Rows) -> None:
        if self.inside is not None:
            self.inside.after_forward(rows, self.notes)

    def mix(self, rows: Rows, logits: Tensor) -> Tensor:
        return self.mixer.mix(rows, logits, self.notes)

    def spread(self, rows: Rows, sampled: Tensor) -> None:
        self.mixer.spread(rows, sampled, self.notes)

    def take_notes(self) -> Notes:
        notes, self.notes = self.notes, {}
        return notes

    def told(self) -> dict[str, Any]:
        return {
            "memories": len(self.memories),
            "memory_bytes": self.memories.bytes,
            "acts_inside": self.inside is not None,
        }
