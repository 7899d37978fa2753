"""The handles of the strategy states next to the model, and the bytes reserved for them, in the server process."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from decoding.errors import BadRequest, Overloaded
from decoding.outputs import StateHandle
from decoding.vllm_engine.worker.state_store import MAX_STATE_BYTES, STATE_MEMORY_FULL


class StateHandles:
    """Handles of states. A state that is freed while requests use it goes with the last of them.

    Attributes:
        known: Handles of states that exist and can be used.
        max_bytes: Most bytes of all states together.
    """

    def __init__(self, max_bytes: int = MAX_STATE_BYTES) -> None:
        self.known: set[str] = set()
        self.max_bytes = max_bytes
        self._reserved: dict[str, int] = {}  # handle -> bytes
        self._users: Counter[str] = Counter()  # handle -> running requests
        self._numbers = itertools.count()

    def create(self, num_bytes: int = 0) -> StateHandle:
        """Create a handle. The caller adds it to `known` once the state exists.

        Args:
            num_bytes: Bytes to reserve; 0 for a small state.

        Returns:
            The handle.

        Raises:
            BadRequest: The state is larger than all states may be together.
            Overloaded: The memory for states is full.
        """
        if num_bytes > self.max_bytes:
            raise BadRequest(f"The strategy's state takes {num_bytes} bytes; this engine holds {self.max_bytes}.")
        if sum(self._reserved.values()) + num_bytes > self.max_bytes:
            raise Overloaded(STATE_MEMORY_FULL, code="memory_full")
        state = StateHandle(f"state-{next(self._numbers)}")
        if num_bytes:
            self._reserved[state.handle] = num_bytes
        return state

    def free(self, state: StateHandle) -> bool:
        """Give up a handle. Return whether its tensors can be freed now."""
        self.known.discard(state.handle)
        if self._users[state.handle]:
            return False
        self._reserved.pop(state.handle, None)
        return True

    @contextmanager
    def hold(self, states: Collection[StateHandle]) -> Iterator[list[StateHandle]]:
        """Keep the tensors of states for as long as the block runs.

        Yields:
            A list, which receives the states that were freed meanwhile and have no other user after the block.
        """
        freed: list[StateHandle] = []
        handles = {state.handle for state in states}
        self._users.update(handles)
        try:
            yield freed
        finally:
            self._users.subtract(handles)
            self._users = +self._users
            freed += [StateHandle(handle) for handle in sorted(handles - self.known) if not self._users[handle]]
