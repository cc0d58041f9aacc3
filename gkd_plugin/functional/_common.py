"""Number formats and checks that several modules share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gkd_plugin.errors import is_number

__all__ = ["check_temperature", "exact_dtype", "no_autocast"]


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64 (MPS).

    The KL of two nearly equal distributions is a small difference of large numbers: float32 keeps about three digits of
    it at temperature 4.
    """
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast does not lower the precision of operations on the tensor's device."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def check_temperature(name: str, value: object) -> None:
    """Raises ValueError, beginning with the name, unless it is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}: must be a finite number above 0, got {value!r}")
