"""Rows of different lengths as one tensor, and what each query of such a batch may see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pad(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def before(states: Sequence[Tensor]) -> Tensor:
    """Keys or values of several rows, [kv heads, length, head_dim] each, padded with 0 before their first column."""
    longest = max(row.shape[1] for row in states)
    return torch.stack([nn.functional.pad(row, (0, 0, longest - row.shape[1], 0)) for row in states])


def behind(past: Sequence[int], chunk: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive [rows, 1, chunk, columns]: every query sees what its own row has before it, itself included."""
    longest = max(past)
    column = torch.arange(longest + chunk)
    query = column[longest:, None]
    first = longest - torch.tensor(past)[:, None, None]
    seen = (column >= first) & (column <= query) & (query - column < (window or longest + chunk))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def even(parts: Sequence[Tensor]) -> list[Tensor]:
    """Padded with 0 at the ends of all dimensions but the first, to one shape."""
    target = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return [
        nn.functional.pad(
            part, [n for has, wants in zip(part.shape[:0:-1], target[::-1], strict=True) for n in (0, wants - has)]
        )
        for part in parts
    ]
