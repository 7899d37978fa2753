"""Rotation of what leaves a layer towards a direction, without a change of its length."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def rotate(outputs: Tensor, direction: Tensor, weight: float | Tensor) -> Tensor:
    """Add a direction to the direction of outputs, and keep their lengths: |x| unit(x/|x| + weight d/|d|).

    Args:
        outputs: [..., width] x.
        direction: [..., width] d. A direction of length 0 changes nothing.
        weight: Weight; [..., 1] where tokens differ.

    Returns:
        [..., width], in the type of the outputs.
    """
    before = outputs.float()
    length = torch.linalg.vector_norm(before, dim=-1, keepdim=True)
    added: Tensor = normalize(before, dim=-1) + weight * normalize(direction.float(), dim=-1)
    rotated: Tensor = length * normalize(added, dim=-1)
    return rotated.to(outputs.dtype)
