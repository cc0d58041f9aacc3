r"""Class centres and nearest-class-mean prediction (TPAMI 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from gkd_plugin.functional._common import exact_dtype

__all__ = ["ClassCentreAccumulator", "class_centres", "nearest_class_mean"]


class ClassCentreAccumulator:
    r"""Class centres c_k = normalise(mean_{i: y_i = k} φ(x_i)) over batches that stream by.

    Sums are kept in float64 (float32 on MPS), on the device of the first batch.

    Args:
        num_classes: C; labels must lie in [0, C). ``None`` grows with the largest label seen.

    Example:
        >>> import torch
        >>> centres = ClassCentreAccumulator()
        >>> centres.update(torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]))
        >>> centres.result()
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self.num_classes = num_classes
        self._sums: Tensor | None = None
        self._counts = torch.zeros(num_classes or 0, dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """``[C]`` int64: samples seen of each class."""
        return self._counts

    def update(self, embedding: Tensor, labels: Tensor) -> None:
        """Adds a batch: ``embedding`` ``[B, D]`` (not normalised), ``labels`` ``[B]`` integers.

        Raises:
            ValueError: a label outside [0, C), or shapes that do not fit.
        """
        if embedding.ndim != 2 or labels.shape != embedding.shape[:1]:
            raise ValueError(
                f"class centres take embeddings [B, D] and labels [B], got {list(embedding.shape)} and "
                f"{list(labels.shape)}"
            )
        if labels.numel() == 0:
            return
        low, high = int(labels.min()), int(labels.max())
        size = high + 1 if self.num_classes is None else self.num_classes
        if low < 0 or high >= size:
            raise ValueError(f"class index out of range: label {low if low < 0 else high}, allowed 0 … {size - 1}")
        rows = embedding.detach().to(exact_dtype(embedding))
        if self._sums is None:
            self._sums, self._counts = rows.new_zeros(len(self._counts), rows.shape[1]), self._counts.to(rows.device)
        missing = max(size - len(self._sums), 0)
        self._sums, self._counts = (
            functional.pad(self._sums, (0, 0, 0, missing)),
            functional.pad(self._counts, (0, missing)),
        )
        index = labels.to(device=self._sums.device, dtype=torch.int64)
        self._sums.index_add_(0, index, rows.to(self._sums))
        self._counts.index_add_(0, index, torch.ones_like(index))

    def result(self) -> Tensor:
        """The centres, ``[C, D]`` float32, rows of length 1.

        Raises:
            ValueError: a class has no sample (names them), or nothing was added.
        """
        empty = (self._counts == 0).nonzero().flatten().tolist()
        if self._sums is None or empty:
            shown = ", ".join(str(k) for k in empty[:10]) + (", …" if len(empty) > 10 else "")
            raise ValueError(f"no sample of class {shown}: its centre cannot be computed" if empty else "no samples")
        means = self._sums / self._counts.unsqueeze(1)
        return functional.normalize(means, dim=1).float()


def class_centres(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int | None = None) -> Tensor:
    r"""Class centres c_k = normalise(mean_{i: y_i = k} φ(x_i)) of (embedding ``[B, D]``, labels ``[B]``) batches.

    Returns:
        ``[C, D]`` float32.

    Raises:
        ValueError: as :class:`ClassCentreAccumulator`.
    """
    accumulator = ClassCentreAccumulator(num_classes)
    for embedding, labels in batches:
        accumulator.update(embedding, labels)
    return accumulator.result()


def nearest_class_mean(embedding: Tensor, centres: Tensor) -> Tensor:
    r"""Nearest-class-mean scores: the cosine of each embedding with each class centre.

    The class of the largest score is the class of the nearest centre on the unit sphere.

    Args:
        embedding: ``[B, D]``, not necessarily normalised.
        centres: ``[C, D]``, rows of length 1.

    Returns:
        ``[B, C]`` float32.
    """
    return functional.normalize(embedding.float(), dim=1) @ centres.float().T
