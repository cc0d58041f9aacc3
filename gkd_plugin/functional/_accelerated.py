"""Which of the engine's parts run compiled: the one place that knows whether Numba is installed."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from gkd_plugin.functional._compiled import finish_distances_compiled, score_compiled
except ImportError:  # Numba is an extra
    AVAILABLE = False
else:
    AVAILABLE = True

__all__ = ["compiled_for", "finish_distances_compiled", "score_compiled"]


def compiled_for(distances: Tensor) -> bool:
    """Whether the compiled parts take this tensor: float32 on the CPU, not a fake one, where Numba is installed."""
    real = type(distances) is Tensor and distances.device.type == "cpu"
    return AVAILABLE and real and distances.dtype == torch.float32
