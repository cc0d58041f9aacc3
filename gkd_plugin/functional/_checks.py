"""Checks of settings that several functions share."""

from __future__ import annotations

import math

__all__ = ["check_temperature", "is_number"]


def is_number(value: object) -> bool:
    """Whether it is an ``int`` or a ``float``, and no ``bool``."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_temperature(name: str, value: object) -> None:
    """Raises ValueError, beginning with the name, unless it is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: must be a finite number above 0, got {value!r}")
