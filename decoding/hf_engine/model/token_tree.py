"""Several continuations of one KV state in one row of a pass, as a tree: tokens that they begin with run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A tree of tokens.

    Attributes:
        tokens: Token ids. A token comes after its predecessor.
        depths: Number of tokens before each one, in its continuations.
        sees: [tokens, tokens] true where a token, the first index, sees another one, or itself.
        paths: For each continuation the numbers of its tokens.
    """

    tokens: list[int]
    depths: list[int]
    sees: Tensor
    paths: list[list[int]]

    @classmethod
    def build(cls, continuations: Sequence[Sequence[int]]) -> TokenTree:
        """Build the tree of continuations, which have at least one token each."""
        tokens: list[int] = []
        depths: list[int] = []
        numbers: dict[tuple[int, int], int] = {}  # number of the token before, or -1, and token id -> number
        paths: list[list[int]] = []
        for continuation in continuations:
            path: list[int] = []
            for depth, token in enumerate(continuation):
                place = (path[-1] if path else -1, token)
                if place not in numbers:
                    numbers[place] = len(tokens)
                    tokens.append(token)
                    depths.append(depth)
                path.append(numbers[place])
            paths.append(path)
        sees = np.eye(len(tokens), dtype=bool)
        for (before, _), number in numbers.items():
            if before >= 0:
                sees[number] |= sees[before]
        return cls(tokens, depths, torch.from_numpy(sees), paths)


def build_tree_mask(past: Sequence[int], trees: Sequence[TokenTree], window: int | None, dtype: torch.dtype) -> Tensor:
    """Build a mask with which each token sees its state, the tokens before it in its continuations, and itself.

    Args:
        past: Tokens of each row's state, whose keys are padded on the left.
        trees: The tree of each row. Shorter ones are padded on the right. Padding sees the state: a row of a mask that
            shows nothing may give nan, which reaches the keys of the next layer.
        window: Number of newest tokens that a token sees; None for all.
        dtype: Type of the mask.

    Returns:
        Additive [rows, 1, longest tree, columns].
    """
    longest, chunk = max(past), max(len(tree.tokens) for tree in trees)
    is_visible = torch.zeros(len(trees), chunk, longest + chunk, dtype=torch.bool)
    for row, (length, tree) in enumerate(zip(past, trees, strict=True)):
        count, depths = len(tree.tokens), torch.tensor(tree.depths)
        from_state = torch.arange(-length, 0)  # positions before the tree
        distance = depths[:, None] - torch.cat([from_state, depths])
        seen = torch.cat([torch.ones(count, length, dtype=torch.bool), tree.sees], dim=1)
        if window is not None:
            seen &= distance < window
        is_visible[row, :count, longest - length : longest + count] = seen
        is_visible[row, count:, longest - length : longest] = True
    return torch.zeros(is_visible.shape, dtype=dtype).masked_fill_(~is_visible, torch.finfo(dtype).min)[:, None]
