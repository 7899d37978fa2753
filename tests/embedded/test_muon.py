"""Muon in float32 against torch's, which computes in bfloat16."""

from __future__ import annotations

import pytest
import torch

from embedded.training.muon import Float32Muon


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_update_equals_that_of_torch_but_for_rounding(shape: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(shape, generator=random) for _ in range(2))
    updates = []
    for kind in (torch.optim.Muon, Float32Muon):
        weight = torch.nn.Parameter(start.clone())
        optimizer = kind([weight], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        weight.grad = gradient.clone()
        optimizer.step()
        updates.append((weight - start).detach())
    theirs, ours = updates
    assert (theirs - ours).norm() < 0.05 * theirs.norm()
    assert not torch.equal(theirs, ours), "ours computes in float32"
