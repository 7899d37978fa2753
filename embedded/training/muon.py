"""Muon with products in float32, for processors without instructions for bfloat16."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import _muon


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes products in bfloat16 at least as fast as in float32."""
    return device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


def orthogonalize(gradient: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Bring the singular values of a matrix near 1 by the quintic Newton-Schulz iteration of Muon, in float32.

    Args:
        gradient: [rows, columns].
        coefficients: Weights of X, (X X^T) X and (X X^T)^2 X.
        steps: Number of iterations.
        eps: Lower bound of the norm that divides the matrix.

    Returns:
        [rows, columns].
    """
    first, third, fifth = coefficients
    is_tall = gradient.shape[0] > gradient.shape[1]
    matrix: Tensor = gradient.float().T if is_tall else gradient.float()
    matrix = matrix / matrix.norm().clamp(min=eps)
    for _ in range(steps):
        gram = matrix @ matrix.T
        matrix = first * matrix + (third * gram + fifth * gram @ gram) @ matrix
    return matrix.T if is_tall else matrix


class Float32Muon(torch.optim.Muon):
    """torch's Muon, which always computes in bfloat16, with `orthogonalize` in its place.

    Where a processor emulates bfloat16, torch's own takes most of the time of training.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with patch.object(_muon, "_zeropower_via_newtonschulz", orthogonalize):
            return super().step(closure)  # type: ignore[no-untyped-call]
