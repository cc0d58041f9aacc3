"""The batch of all processes: what a loss compares does not depend on how many of them share a batch.

A loss here is such that its mean over the processes, which DDP takes of the gradients, is that of one process with the
whole batch. The processes' batches have the same size, as Accelerate makes them.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed

from gkd_plugin.errors import ConfigError


@dataclass(kw_only=True, eq=False, repr=False)
class Gathering:
    """The setting of a loss that compares the samples of a batch.

    Args:
        gather: of several processes, compare the batch of all, as one process would; ``False``: each its own part.
    """

    gather: bool = True

    def check_gather(self) -> None:
        """Raises ConfigError unless it is a bool."""
        if not isinstance(self.gather, bool):
            raise ConfigError(f"gather: must be True or False, got {self.gather!r}")

    def gathered(self, rows: Tensor) -> Tensor:
        """As :func:`gathered`, or the rows as they are."""
        return gathered(rows) if self.gather else rows

    def own(self, count: int) -> tuple[int, int]:
        """First and end of this process's rows, so many, among those that :meth:`gathered` gives."""
        first = rank() * count if self.gather else 0
        return first, first + count


def world_size() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def gathered(rows: Tensor) -> Tensor:
    """``[W · B, …]``, the rows ``[B, …]`` of all processes in their order; the gradient of each row goes back to it."""
    return cast("Tensor", _Gather.apply(rows)) if world_size() > 1 else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        everywhere = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(everywhere, rows.contiguous())
        return torch.cat(everywhere)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # gloo has no reduce_scatter
        return summed(gradients[0])[rank() * ctx.count :][: ctx.count]


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, without a gradient."""
    values = values.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        distributed.all_reduce(values)
    return values
