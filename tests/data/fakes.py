"""A dataset small enough to predict by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import Dataset


class FakeImages(Dataset[Any]):
    """Sample i is ``(prefix + str(i), label)``; without ``targets`` only where ``labels`` is ``None``."""

    def __init__(self, labels: Any, classes: Iterable[Any] | None = None, prefix: str = "image") -> None:
        if labels is not None:
            self.targets = labels
        if classes is not None:
            self.classes = list(classes)
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self.targets):
            raise IndexError(index)
        return f"{self.prefix}{index}", int(self.targets[index])


def with_view(labels: list[int], classes: Iterable[Any] | None = None) -> FakeImages:
    dataset = FakeImages(labels, classes, prefix="augmented")
    dataset.evaluation_view = FakeImages(labels, classes, prefix="clean")
    return dataset
