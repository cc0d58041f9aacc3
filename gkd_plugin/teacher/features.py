"""What a readout gets beside the embedding: outputs of earlier layers of the teacher, pooled over positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.errors import ConfigError

__all__ = ["LocalFeatures", "pooled"]


class LocalFeatures:
    r"""Outputs of a teacher's modules, each as one row a sample, side by side.

    A deep embedding drops what did not matter for the teacher's own classes. Earlier layers still have it (texture,
    colour), and it helps to tell apart classes that the teacher has never seen. Not in the paper.

    Args:
        model: the teacher.
        paths: module paths in it.

    Raises:
        ConfigError: ``paths`` is not a list of module paths.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str] | None) -> None:
        if isinstance(paths, str) or not all(isinstance(path, str) for path in paths or ()):
            raise ConfigError(f"local_features: must be a list of module paths, got {paths!r}")
        self.paths = tuple(paths or ())
        for path in self.paths:
            check_module_path(model, path, "local_features")
            if self.paths.count(path) > 1:
                raise ConfigError(f"local_features: {path!r} is given twice")
        self._captures = [Capture.of(model, path, "output") for path in self.paths]

    def take(self) -> Tensor | None:
        """``[B, F]`` float32 of the teacher's last forward pass; ``None`` where no module is named.

        Raises:
            ConfigError: a module was not run, or its output is none of those of :func:`pooled`.
        """
        rows = []
        for path, capture in zip(self.paths, self._captures, strict=True):
            rows.append(pooled(capture.value, path))
            capture.value = None
        return torch.cat(rows, dim=1) if rows else None


def pooled(output: Any, path: str) -> Tensor:
    """One float32 row a sample: mean and standard deviation over positions.

    Args:
        output: a feature map ``[B, C, H, W]`` or tokens ``[B, N, C]`` → ``[B, 2 C]``; what has no positions, ``[B, C]``
            or ``[B, C, 1, 1]``, → ``[B, C]``.
        path: of the module, for the message.

    Raises:
        ConfigError: it is not a tensor of such a shape.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        shown = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"local_features: {path!r} gave {shown}, not a tensor [B, C], [B, N, C] or [B, C, H, W]")
    rows = output.float()
    positions = rows.transpose(1, 2) if rows.ndim == 3 else rows.flatten(2) if rows.ndim == 4 else rows.unsqueeze(2)
    if positions.shape[2] == 1:
        return positions.squeeze(2)
    deviation, mean = torch.std_mean(positions, dim=2, correction=0)
    return torch.cat([mean, deviation], dim=1)
