"""Which of the engine's parts run compiled: the one place that knows whether Numba is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import numba as _numba
except ImportError:  # Numba is an extra
    _numba = None  # type: ignore[assignment]

_compiled: Any = None
if _numba is not None:
    from gkd_plugin.functional import _compiled

__all__ = ["compiled_for", "compiled_parts"]

AVAILABLE = _compiled is not None


def compiled_for(distances: Tensor) -> bool:
    """Whether the compiled parts take this tensor: float32 on the CPU, not a fake one, where Numba is installed."""
    real = type(distances) is Tensor and distances.device.type == "cpu"
    return AVAILABLE and real and distances.dtype == torch.float32


def compiled_parts() -> Any:
    """The module ``_compiled``; ask :func:`compiled_for` first."""
    return _compiled
