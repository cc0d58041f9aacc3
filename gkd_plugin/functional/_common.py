"""Number formats and checks that several modules share."""

import math

import torch
from torch import Tensor

from gkd_plugin.errors import is_number


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """float64 (float32 on MPS, which has none): float32 keeps three digits of the KL of nearly equal distributions."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def result_dtype(tensor: Tensor) -> torch.dtype:
    """The tensor's own, float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def log_softmax_without(logits: Tensor, absent: Tensor) -> Tensor:
    """Log-softmax of each row over the columns that are not ``absent``; 0 in those, so that nothing is ever NaN."""
    return logits.masked_fill(absent, -torch.inf).log_softmax(dim=1).masked_fill(absent, 0)


def check_temperature(name: str, value: object) -> None:
    """Raises ValueError, beginning with the name, unless it is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}: must be a finite number above 0, got {value!r}")
