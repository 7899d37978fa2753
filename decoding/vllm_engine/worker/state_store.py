"""Strategy states next to the model: tensors that `update_state` hooks and probes leave, bounded in bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from decoding.errors import Overloaded
from decoding.tensor_hooks import Activations, TensorHooks, Tensors

MAX_STATE_BYTES = 1 << 30
STATE_MEMORY_FULL = "The engine holds as many strategy states as it can; try again in a moment."


class StateStore:
    """States by handle. The server process chooses a handle before its tensors exist, and frees it."""

    def __init__(self, max_bytes: int = MAX_STATE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: dict[str, Tensors] = {}
        self._vectors: dict[str, Tensors] = {}  # not counted

    def __len__(self) -> int:
        return len(self._states)

    def put(self, handle: str, state: Tensors) -> None:
        """Store a state, in the place of an earlier one with the same handle.

        Args:
            handle: The state's handle.
            state: The tensors, of any shape.

        Raises:
            Overloaded: The memory for states is full.
        """
        num_bytes = self.num_bytes + count_bytes(state) - count_bytes(self._states.get(handle, {}))
        if num_bytes > self.max_bytes:
            raise Overloaded(STATE_MEMORY_FULL, code="memory_full")
        self._states[handle] = state
        self.num_bytes = num_bytes

    def put_vectors(self, handle: str, state: Tensors) -> None:
        """Store vectors of a file, whose bytes the server process bounds."""
        self._vectors[handle] = state

    def get(self, handle: str) -> Tensors:
        """Return a state that exists."""
        return self._vectors[handle] if handle in self._vectors else self._states[handle]

    def get_all(self, handles: Mapping[str, str]) -> dict[str, Tensors]:
        """Return strategy -> its state, for the handles of strategies. The states exist."""
        return {strategy: self.get(handle) for strategy, handle in handles.items()}

    def get_or_empty(self, handle: str) -> Tensors:
        """Return a state, or an empty one before its first update."""
        return self._states.get(handle, {})

    def free(self, handle: str) -> None:
        """Drop a state, if it exists."""
        self._vectors.pop(handle, None)
        self.num_bytes -= count_bytes(self._states.pop(handle, {}))


def count_bytes(state: Tensors) -> int:
    """Count the bytes of a state."""
    return sum(tensor.nbytes for tensor in state.values())


def measure_updated_state(strategy: TensorHooks, vocab_size: int) -> int:
    """Measure a state that a strategy folds from the logits of an answer. The answer's length does not change its size.

    Args:
        strategy: Strategy with an `update_state` hook.
        vocab_size: Length of the logits.

    Returns:
        Bytes; 0 if the hook raises. It raises again next to the model, where its own request fails.
    """
    try:
        return count_bytes(strategy.update_state({}, Activations(logits=torch.zeros(vocab_size))))
    except Exception:
        return 0
