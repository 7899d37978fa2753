"""Arrange continuations of one KV state as a tree in one row of a pass: tokens that they begin with run once."""

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
        tokens: Token ids, [tokens]. A token comes after its predecessor.
        depths: Number of tokens before each one in its continuations, [tokens].
        visibility: Whether a token, the first index, attends to another one, or itself, [tokens, tokens] bool.
        paths: For each continuation the indices of its tokens in `tokens`, in order.
    """

    tokens: list[int]
    depths: list[int]
    visibility: Tensor
    paths: list[list[int]]

    @classmethod
    def build(cls, continuations: Sequence[Sequence[int]]) -> TokenTree:
        """Build the tree of continuations.

        Args:
            continuations: Token ids of each continuation, at least one.

        Returns:
            The tree. Continuations that begin with the same tokens share them.
        """
        tokens: list[int] = []
        depths: list[int] = []
        indices: dict[tuple[int, int], int] = {}  # index of the token before, or -1, and token id -> index
        paths: list[list[int]] = []
        for continuation in continuations:
            path: list[int] = []
            for depth, token in enumerate(continuation):
                edge = (path[-1] if path else -1, token)
                if edge not in indices:
                    indices[edge] = len(tokens)
                    tokens.append(token)
                    depths.append(depth)
                path.append(indices[edge])
            paths.append(path)
        visibility = np.eye(len(tokens), dtype=bool)
        for (before, _), index in indices.items():
            if before >= 0:
                visibility[index] |= visibility[before]
        return cls(tokens, depths, torch.from_numpy(visibility), paths)


def build_tree_mask(past: Sequence[int], trees: Sequence[TokenTree], window: int | None, dtype: torch.dtype) -> Tensor:
    """Build a mask by which each token attends to its state, the tokens before it in its continuations, and itself.

    Args:
        past: Number of tokens of each row's state, [rows]. The keys of shorter ones are padded on the left.
        trees: The tree of each row, [rows]. Shorter ones are padded on the right. Padding attends to the state: a row
            of a mask that hides all columns may give nan, which reaches the keys of the next layer.
        window: Number of newest tokens that a token attends to; None for all.
        dtype: Floating type of the mask.

    Returns:
        Additive mask, [rows, 1, longest tree, longest state + longest tree]: 0 for visible columns, else the least
        number of `dtype`.
    """
    longest, chunk = max(past), max(len(tree.tokens) for tree in trees)
    is_visible = torch.zeros(len(trees), chunk, longest + chunk, dtype=torch.bool)
    for row, (length, tree) in enumerate(zip(past, trees, strict=True)):
        count, depths = len(tree.tokens), torch.tensor(tree.depths)
        from_state = torch.arange(-length, 0)  # positions before the tree
        distance = depths[:, None] - torch.cat([from_state, depths])
        attended = torch.cat([torch.ones(count, length, dtype=torch.bool), tree.visibility], dim=1)
        if window is not None:
            attended &= distance < window
        is_visible[row, :count, longest - length : longest + count] = attended
        is_visible[row, count:, longest - length : longest] = True
    return torch.zeros(is_visible.shape, dtype=dtype).masked_fill_(~is_visible, torch.finfo(dtype).min)[:, None]
