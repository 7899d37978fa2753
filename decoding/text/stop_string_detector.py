"""Detect stop strings in the text of an answer, piece by piece."""

from __future__ import annotations


class StopStringDetector:
    """Holds back text that may begin a stop string, and cuts the text at the first stop string.

    A stop string that is complete within the first `min_tokens` tokens is treated as ordinary text.

    Attributes:
        is_stopped: Whether a stop string is complete. No more text is added then.
        held: Text that may begin a stop string, and has not been returned.
    """

    def __init__(self, stop: tuple[str, ...], min_tokens: int = 0) -> None:
        """Start an answer.

        Args:
            stop: Strings that end the answer. They are not part of it.
            min_tokens: Number of tokens before which a stop string does not end the answer.
        """
        self.is_stopped = False
        self._stop = stop
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self.held = ""

    def add(self, text: str, num_tokens: int = 1) -> str:
        """Add the text of one token, or of none, as text that a strategy writes.

        Returns:
            The text that is now certain; empty while a stop string is open.
        """
        self._num_tokens += num_tokens
        self.held += text
        ends = [at for string in self._stop if (at := self.held.find(string)) >= 0]
        if ends and self._num_tokens > self._min_tokens:
            self.is_stopped = True
            certain, self.held = self.held[: min(ends)], ""
            return certain
        overlap = max((count_stop_overlap(self.held, string) for string in self._stop), default=0)
        certain, self.held = self.held[: len(self.held) - overlap], self.held[len(self.held) - overlap :]
        return certain

    def flush(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        text, self.held = self.held, ""
        return text


def count_stop_overlap(text: str, string: str) -> int:
    """Count the characters of the longest suffix of `text` that is a proper prefix of `string`."""
    return max((n for n in range(1, min(len(text), len(string) - 1) + 1) if string.startswith(text[-n:])), default=0)
