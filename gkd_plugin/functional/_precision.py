"""The number format of the distances, softmaxes and KL terms."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exact_dtype", "no_autocast"]


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64 (MPS).

    The KL between two nearly equal distributions is a small difference of large numbers: in float32 it keeps
    about three digits at temperature 4. The tensors here are small (B × B), so float64 is affordable.
    """
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not lower the precision of operations on the tensor's device."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
