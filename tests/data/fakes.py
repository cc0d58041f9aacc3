"""Datasets small enough to predict by hand, and values that count the work done on them."""

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


def samples(dataset: Any) -> list[Any]:
    return [dataset[i] for i in range(len(dataset))]


def counted(kind: type) -> Any:
    """A new kind of ``int`` or ``str`` whose attribute ``looks`` counts how often any of them is compared or hashed."""

    class Counted(kind):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return kind.__eq__(self, other)

        def __hash__(self) -> int:
            Counted.looks += 1
            return kind.__hash__(self)

    return Counted
