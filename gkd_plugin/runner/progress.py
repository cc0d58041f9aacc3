"""Running means of an epoch, and the progress bar that shows them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

__all__ = ["EpochProgress"]


class EpochProgress:
    """A progress bar over the batches of an epoch with loss terms, learning rate and images/s.

    Args:
        batches: the data loader.
        title: what stands before the bar.
        disable: tqdm's ``disable``.
    """

    def __init__(self, batches: Iterable[Any], title: str, disable: bool | None = None) -> None:
        self._bar = tqdm(batches, desc=title, disable=disable, leave=False, dynamic_ncols=True)
        self._sums: dict[str, float] = defaultdict(float)
        self._batches = 0
        self._images = 0
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def __iter__(self) -> Any:
        return iter(self._bar)

    def update(self, loss: float, terms: Mapping[str, Tensor], lr: float, images: int) -> None:
        """Adds one batch."""
        self._batches += 1
        self._images += images
        self._sums["loss"] += loss
        for name, value in terms.items():
            self._sums[name] += float(value)
        if not self._bar.disable:
            shown = {name: f"{value:.4g}" for name, value in self.means().items()}
            self._bar.set_postfix({**shown, "lr": f"{lr:.2g}", "img/s": f"{self.images_per_second():.0f}"})

    def means(self) -> dict[str, float]:
        """Mean of the loss and of every term over the batches so far."""
        return {name: value / max(self._batches, 1) for name, value in self._sums.items()}

    def images_per_second(self) -> float:
        """Since the epoch began, on this process."""
        return self._images / max(time.perf_counter() - self._start, 1e-9)
