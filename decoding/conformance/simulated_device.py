"""A simulated accelerator, which finds mistakes of tensor code that only show on a GPU.

Its tensors have a shape, a dtype and a device, but no values. An operation that combines them with tensors of the host
raises. So does each operation for which a GPU would stop the host: `.item()`, `.tolist()`, `bool(tensor)`, a mask as an
index, and a copy from the host to the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.utils import backend_registration

# The backend that torch reserves for others. The name "cuda" would not do: indexing such a tensor calls CUDA's runtime.
DEVICE = torch.device("privateuseone", 0)


@cache
def register_device() -> None:
    """Let torch switch to the device and back. `torch.accelerator` does not list it."""
    torch._C._acc.register_python_privateuseone_device_guard(backend_registration._DummyDeviceGuard())
    setattr(torch, DEVICE.type, backend_registration._DummyBackendModule())


@cache
def create_mode() -> fake_tensor.FakeTensorMode:
    """Create the mode. Tensors of two modes do not mix, so that there is one."""
    return fake_tensor.FakeTensorMode()


@contextmanager
def simulate_device() -> Iterator[None]:
    """Simulate the tensors that are made within the context."""
    register_device()
    # Else the mode computes with the values of the smallest tensors, which the simulated device cannot.
    with patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", -1), create_mode():
        yield


def copy_to_device(tensor: Tensor) -> Tensor:
    """Return a tensor of the device with the shape, the strides and the dtype of a tensor."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


def copy_all_to_device(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the device, by the same names."""
    return {name: copy_to_device(tensor) for name, tensor in tensors.items()}
