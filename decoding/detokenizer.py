"""From token ids to text, a piece at a time, watching for stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers.convert_slow_tokenizer import bytes_to_unicode

from decoding.answer import Alternative

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one answer as it grows. What might be the beginning of a stop string is held back.

    A stop string that is complete within the first `least` tokens is text like any other.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], after: Sequence[int] = (), least: int = 0) -> None:
        """`after`: the tokens of the text that it goes on from: the space before the first word is then part of it."""
        self._tokenizer = tokenizer._tokenizer
        told = self._tokenizer.decode(after)
        # A text that breaks off within a character would be told once more by the stream.
        self._stream = DecodeStream(ids=[] if told.endswith(UNFINISHED) else after, skip_special_tokens=True)
        self._stop = stop
        self._least = least
        self._tokens = 0
        self._open: list[int] = []  # tokens of a character that is not complete
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now. Sets `stopped` when a stop string is complete; it is not part of the text."""
        self._tokens += 1
        self._open.append(token)
        said = self._stream.step(self._tokenizer, token)
        if said is not None:
            self._open.clear()
            self._held += said
        ends = [at for string in self._stop if (at := self._held.find(string)) >= 0]
        if ends and self._tokens > self._least:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            self._open.clear()
            return text
        keep = max((overlap(self._held, string) for string in self._stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        text: str = self._held + self._tokenizer.decode(self._open)
        self._held = ""
        self._open.clear()
        return text


def overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that begins `string`."""
    return max((n for n in range(1, min(len(text), len(string) - 1) + 1) if string.startswith(text[-n:])), default=0)


class Vocabulary:
    """Single tokens as text and bytes, for log-probabilities. A token may hold a part of a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        alphabet = bytes_to_unicode()
        self._byte_of = {character: byte for byte, character in alphabet.items()}
        self._is_byte_level = "ByteLevel" in repr(tokenizer._tokenizer.decoder)

    def alternative(self, token: int, logprob: float, *, begins: bool = False) -> Alternative:
        """`begins`: it is the first of a text, where some tokenizers leave out the space before a word."""
        raw = self._bytes(token)
        if begins and raw.startswith(b" ") and not self._tokenizer._tokenizer.decode([token]).startswith(" "):
            raw = raw[1:]
        return Alternative(token, raw.decode(errors="replace"), raw, logprob)

    def _bytes(self, token: int) -> bytes:
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the model's table of words is often padded
            return b""
        if token in self._tokenizer.added_tokens_decoder:
            return piece.encode()
        if self._is_byte_level:
            return bytes(self._byte_of[character] for character in piece)
        if piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace("▁", " ").encode()
