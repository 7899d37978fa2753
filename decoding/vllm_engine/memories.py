"""Tensors that digests and probes leave next to the model. Bounded in bytes; freed by whoever asked for them."""

from __future__ import annotations

import torch

from decoding.errors import Overloaded
from decoding.strategy import Captured, Strategy, Tensors

MOST_BYTES = 1 << 30


class Memories:
    """By handle. The handle is chosen by the server process, before the tensors are there."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._tensors: dict[str, Tensors] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    def keep(self, handle: str, tensors: Tensors) -> None:
        """Raises:
        Overloaded: there is no room for it.
        """
        after = self.bytes + size(tensors) - size(self._tensors.get(handle, {}))
        if after > self.most_bytes:
            raise full()
        self._tensors[handle] = tensors
        self.bytes = after

    def recall(self, handle: str) -> Tensors:
        """Raises:
        KeyError: it was forgotten, or never made.
        """
        return self._tensors[handle]

    def recall_or_nothing(self, handle: str) -> Tensors:
        return self._tensors.get(handle, {})

    def forget(self, handle: str) -> None:
        self.bytes -= size(self._tensors.pop(handle, {}))


def size(tensors: Tensors) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensor in tensors.values())


def digested_size(strategy: Strategy, vocab: int) -> int:
    """Bytes of what the strategy keeps of an answer, however long it is: found by digesting a token of nobody's."""
    try:
        return size(strategy.digest({}, Captured(logits=torch.zeros(vocab))))
    except Exception:  # it will raise again next to the model, where its own request is failed for it
        return 0


def full() -> Overloaded:
    return Overloaded("The engine holds as many memories as it may; try again in a moment.", code="memory_full")
