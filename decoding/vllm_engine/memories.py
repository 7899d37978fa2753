"""Tensors that digests and probes leave next to the model. Bounded in bytes; freed by whoever asked for them."""

from __future__ import annotations

from decoding.strategy import Tensors


class Memories:
    """By handle. The handle is chosen by the server process, before the tensors are there."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._tensors: dict[str, Tensors] = {}

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self._tensors.values() for tensor in tensors.values())

    def keep(self, handle: str, tensors: Tensors) -> None:
        """Raises:
        MemoryError: there is no room for it.
        """
        before = self._tensors.get(handle)
        self._tensors[handle] = tensors
        if self.bytes > self.most_bytes:
            if before is None:
                del self._tensors[handle]
            else:
                self._tensors[handle] = before
            raise MemoryError("The engine holds as many memories as it may.")

    def recall(self, handle: str) -> Tensors:
        """Raises:
        KeyError: it was forgotten, or never made.
        """
        return self._tensors[handle]

    def recall_or_nothing(self, handle: str) -> Tensors:
        return self._tensors.get(handle, {})

    def forget(self, handle: str) -> None:
        self._tensors.pop(handle, None)
