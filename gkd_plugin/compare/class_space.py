"""The class space of a cell: what ``--overlap`` sets, and whether teacher and student share their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from gkd_plugin.data import overlap_classes
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.yaml_nodes import CORE, merged_pairs, put, remove, steps
from gkd_plugin.runner.yaml_plain import to_plain

__all__ = ["ClassSpace", "apply_overlap", "shares_classes"]

_SUBSET = "gkd_plugin.data.overlap_subset"


@dataclass(frozen=True)
class ClassSpace:
    """One column of the comparison.

    Attributes:
        overlap: share of classes in common, in per cent; ``None`` leaves the configuration as it is.
    """

    overlap: float | None = None

    @property
    def name(self) -> str:
        """For folders."""
        return "as_configured" if self.overlap is None else f"overlap{self.overlap:g}"

    @property
    def title(self) -> str:
        """For tables."""
        return "as configured" if self.overlap is None else f"overlap {self.overlap:g} %"


def apply_overlap(root: MappingNode, overlap: float) -> None:
    """Sets the overlap of every ``overlap_subset`` of the student in a configuration's node graph, in place.

    Args:
        root: the configuration.
        overlap: in per cent.

    Raises:
        ConfigError: there is no such subset, or its number of classes cannot give the overlap.
    """
    found = list(_student_subsets(root))
    if not found:
        raise ConfigError(f"--overlap: no data set is a {_SUBSET} with role 'student', so there is no overlap to set")
    for kwargs in found:
        remove(kwargs, "shift")
        put(kwargs, "overlap", ScalarNode(f"{CORE}float", repr(overlap / 100)))
        with told_at(f"--overlap {overlap:g}: "):
            _classes_of(to_plain(kwargs))


def shares_classes(root: MappingNode) -> bool:
    """Whether the student's classes are the teacher's own, as far as the configuration's text shows.

    An ``overlap_subset`` of the student shows it; without one, as many classes are taken to be the same.
    """
    found = list(_student_subsets(root))
    if found:
        return all(_classes_of(plain, "teacher") == _classes_of(plain) for plain in map(to_plain, found))
    models = to_plain(root)["models"]
    counts = [((models.get(name) or {}).get("kwargs") or {}).get("num_classes") for name in _MODELS]
    return counts[0] is not None and counts[0] == counts[1]


_MODELS = ("teacher_model", "student_model")


def _classes_of(kwargs: Mapping[str, Any], role: str = "student") -> list[int]:
    """Positions in the class order; whether there are so many classes shows when the data set is built."""
    names = ("num_classes", "shift", "overlap")
    return overlap_classes(**{name: kwargs[name] for name in names if name in kwargs}, role=role)


def _student_subsets(root: MappingNode) -> Iterator[MappingNode]:
    """The ``kwargs`` of every student's ``overlap_subset``, once each."""
    seen: set[int] = set()
    waiting: list[Node] = [dict(_named(root)).get("datasets", root)]
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        waiting += [child for _, child in steps(node)]
        keys = dict(_named(node))
        if getattr(keys.get("key"), "value", None) == _SUBSET and "init" in keys:
            kwargs = dict(_named(keys["init"])).get("kwargs")
            if isinstance(kwargs, MappingNode) and getattr(dict(_named(kwargs)).get("role"), "value", "") == "student":
                yield kwargs


def _named(node: Node) -> list[tuple[str, Node]]:
    return [(str(key.value), value) for key, value in merged_pairs(node)] if isinstance(node, MappingNode) else []
