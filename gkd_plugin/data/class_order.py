"""The order of all classes from which splits are cut: natural, a list, a text file, or drawn from a seed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gkd_plugin.data._checks import whole_number
from gkd_plugin.data.class_subset import index_of_name
from gkd_plugin.errors import ConfigError, nearest, told_at

__all__ = ["ClassOrder", "ordered_classes"]

ClassOrder = Sequence[int] | str
"""All class indices, or the path to a text file that holds one class in each line."""

_COMMENT = re.compile(r"(^|\s)#.*")


def ordered_classes(
    class_order: ClassOrder | None,
    seed: int | None,
    total_classes: int | None,
    class_names: Sequence[Any] | None = None,
) -> list[int]:
    """All class indices in the order to cut from.

    Args:
        class_order: all class indices, or the path to a UTF-8 text file that holds one class in each line: its name,
            or its index where no class has that name. Blank lines and ``# comments`` are left out.
        seed: draws a random order of ``total_classes`` classes instead, whatever the global random state is.
        total_classes: the number of classes there are; only with ``class_order`` it may be ``None``.
        class_names: the names that a file may use.

    Raises:
        ConfigError: both ``class_order`` and ``seed`` are given, the number of classes is needed and not given, the
            file cannot be read, or an entry is no class, or not each class is there once.

    Example:
        >>> ordered_classes(None, None, 3), ordered_classes([2, 0, 1], None, 3)
        ([0, 1, 2], [2, 0, 1])
    """
    if class_order is not None and seed is not None:
        raise ConfigError(f"give either class_order or seed, got both (seed={seed!r})")
    if isinstance(class_order, str):
        return _from_file(Path(class_order), total_classes, class_names)
    if class_order is not None:
        if not isinstance(class_order, list | tuple | range):
            raise ConfigError(f"class_order must be a list of class indices or the path to a file, got {class_order!r}")
        return _permutation(class_order, total_classes)
    if total_classes is None:
        raise ConfigError(f"seed={seed!r} draws an order of all classes, so total_classes is needed too")
    if seed is None:
        return list(range(total_classes))
    order: list[int] = np.random.default_rng(whole_number("seed", seed, low=0)).permutation(total_classes).tolist()
    return order


def _permutation(class_order: Sequence[int], total_classes: int | None) -> list[int]:
    size = len(class_order) if total_classes is None else total_classes
    order = [
        whole_number(f"class_order: entry {place}", entry, low=0, high=max(size - 1, 0))
        for place, entry in enumerate(class_order)
    ]
    counts = Counter(order)
    twice = [label for label, count in counts.items() if count > 1]
    missing = [label for label in range(size) if label not in counts]
    if twice or missing:
        wrong = [f"{name} {labels[:5]}" for name, labels in (("twice", twice), ("missing", missing)) if labels]
        raise ConfigError(f"class_order must hold each of the {size} class indices once; {', '.join(wrong)}")
    return order


def _from_file(path: Path, total_classes: int | None, class_names: Sequence[Any] | None) -> list[int]:
    entries = list(_entries(path))
    size = len(entries) if total_classes is None else total_classes
    names: Sequence[Any] = range(size) if class_names is None else class_names
    lines: dict[int, int] = {}
    for line, entry in entries:
        with told_at(f"class_order: {path}, line {line}: "):
            label = _class_in(entry, names, size)
            if label in lines:
                raise ConfigError(f"{entry!r} is the class of line {lines[label]} again")
            lines[label] = line
    missing = [names[label] for label in range(size) if label not in lines]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5])
        raise ConfigError(
            f"class_order: {path}: must hold each of the {size} classes once, {len(missing)} missing: {shown}"
        )
    return list(lines)


def _entries(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and what stands there, without blank lines and comments."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"class_order: there is no file {path}{_near_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"class_order: {path} cannot be read as UTF-8 text: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        entry = _COMMENT.sub("", line).strip()
        if entry:
            yield number, entry


def _near_file(path: Path) -> str:
    files = [file.name for file in path.parent.glob(f"*{path.suffix}") if file.is_file()]
    return f"; in its folder {nearest(path.name, files)}" if files else ""


def _class_in(entry: str, names: Sequence[Any], size: int) -> int:
    """The class that a line names.

    Raises:
        ConfigError: there is none, or several.
    """
    if not entry.isdecimal() or any(entry == name for name in names):
        return index_of_name(entry, names)
    if int(entry) >= size:
        raise ConfigError(f"class index out of range: {entry}, allowed 0 … {size - 1}")
    return int(entry)
