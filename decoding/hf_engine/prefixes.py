"""The beginnings of prompts, up to the end of their pictures: read once for all questions about the same pictures."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from decoding.encoder import Encoded
from decoding.hf_engine.model import Model, Read
from decoding.hf_engine.narrowing import Pairs
from decoding.prompt import Prompt

Value = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What its keys and values depend on where no strategy acts inside the model; all of it is compared, not a hash."""

    ids: tuple[int, ...]
    pictures: tuple[str, ...]  # their keys: pixels and noise
    extras: tuple[Value, ...]  # what else the model is told; of InstructBLIP, the question that its Q-Former reads

    def __len__(self) -> int:
        return len(self.ids)


class Prefixes:
    """Holds at most so many bytes, the longest unused go first. The worker's alone; its counts are read by others."""

    def __init__(self, model: Model, most_bytes: int) -> None:
        self.model = model
        self.most_bytes = most_bytes
        self.bytes = 0
        self.queries = 0  # tokens of prompts that were looked up
        self.hits = 0  # tokens of them that were there
        # Follow from the pictures or the ids. Idefics3's mask of the pixels would be millions of numbers to compare.
        self._told = {*model.encoder.processor.image_processor.model_input_names, *model.family.per_token}
        self._kept: OrderedDict[Beginning, Read] = OrderedDict()

    def beginning(self, prompt: Prompt, encoded: Encoded) -> Beginning | None:
        """None: there is no picture, or no byte to keep anything in. At least one token is left to be read."""
        seen = (encoded.ids[:-1] == self.model.picture_token).nonzero()
        if not len(seen) or not self.most_bytes:
            return None
        others = sorted(encoded.extras.keys() - self._told)
        return Beginning(
            tuple(encoded.ids[: int(seen[-1]) + 1].tolist()),
            tuple(picture.key for picture in prompt.pictures),
            tuple((name, tuple(encoded.extras[name].flatten().tolist())) for name in others),
        )

    def find(self, beginning: Beginning, tokens: int) -> Read | None:
        """`tokens`: of the whole prompt."""
        self.queries += tokens
        if beginning not in self._kept:
            return None
        self.hits += len(beginning)
        self._kept.move_to_end(beginning)
        return self._kept[beginning]

    def keep(self, beginning: Beginning, read: Read) -> None:
        if beginning in self._kept or size(read) > self.most_bytes:
            return
        self._kept[beginning] = Read(read.own(), read.position)
        self.bytes += size(read)
        while self.bytes > self.most_bytes:
            self.bytes -= size(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0


def cut(read: Read, length: int) -> Read:
    """Its first tokens; what comes after them is text, which takes a position a token."""
    whole = read.pairs[0][0].shape[1]
    pairs: Pairs = [(keys[:, :length], values[:, :length]) for keys, values in read.pairs]
    return Read(pairs, read.position - (whole - length))


def size(read: Read) -> int:
    """Bytes."""
    return sum(keys.nbytes + values.nbytes for keys, values in read.pairs)
