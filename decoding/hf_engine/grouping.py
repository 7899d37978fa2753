"""Which prompts go through the model together."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.encoder import Encoded

PREFILL_TOKENS = 2048  # padded, in one pass over prompts


def grouped(prompts: Sequence[Encoded]) -> list[list[int]]:
    """Their numbers, in groups with pixels of one shape and not too many tokens."""
    groups: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda number: len(prompts[number])):
        for group in groups:
            if fits(prompts[number], [prompts[other] for other in group]):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def fits(encoded: Encoded, group: Sequence[Encoded]) -> bool:
    shapes = [encoded.pixel_shape, *(other.pixel_shape for other in group)]
    longest = max(len(encoded), *(len(other) for other in group))
    return longest * len(shapes) <= PREFILL_TOKENS and len(set(shapes) - {None}) <= 1
