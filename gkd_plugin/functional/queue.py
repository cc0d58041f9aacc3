"""Embeddings of earlier batches, for tuples across batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EmbeddingQueue"]


class EmbeddingQueue:
    """The last ``size`` samples' embeddings of both networks and their labels, first in, first out.

    How full it is, is known on the host: reading it waits for no device. It is not part of any checkpoint; a run that
    is resumed fills it again.

    Args:
        size: samples to keep, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    Example:
        >>> import torch
        >>> queue = EmbeddingQueue(3)
        >>> queue.push(torch.eye(2), torch.ones(2, 5), torch.tensor([0, 1]))
        >>> queue.push(torch.eye(2), torch.ones(2, 5), torch.tensor([2, 3]))
        >>> student, teacher, labels = queue.content()
        >>> labels
        tensor([1, 2, 3])
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"a queue holds at least 1 sample, got size {size!r}")
        self.size = size
        self._content: tuple[Tensor, Tensor, Tensor] | None = None

    def __bool__(self) -> bool:
        """True, empty or not."""
        return True

    def __len__(self) -> int:
        return 0 if self._content is None else self._content[2].shape[0]

    def push(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Adds a batch, ``[B, D_s]``, ``[B, D_t]`` and ``[B]``, detached; the oldest samples leave.

        Raises:
            ValueError: the batch sizes differ.
        """
        if not student.shape[:1] == teacher.shape[:1] == labels.shape:
            raise ValueError(
                f"a queue takes embeddings [B, D_s], [B, D_t] and labels [B], got {list(student.shape)}, "
                f"{list(teacher.shape)} and {list(labels.shape)}"
            )
        leaving = max(0, len(self) + len(labels) - self.size)
        batch = [tensor.detach()[-self.size :].clone() for tensor in (student, teacher, labels)]
        if self._content is not None:
            pairs = zip(self._content, batch, strict=True)
            batch = [torch.cat([old[leaving:].to(new.device), new]) for old, new in pairs]
        self._content = (batch[0], batch[1], batch[2])

    def content(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Embeddings of student ``[Q, D_s]`` and teacher ``[Q, D_t]`` and labels ``[Q]``, oldest first, or ``None``."""
        return self._content

    def clear(self) -> None:
        """Forgets everything."""
        self._content = None
