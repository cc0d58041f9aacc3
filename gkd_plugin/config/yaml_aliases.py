"""Aliases that PyYAML fills too late for the object that takes them.

FullLoader makes plain lists and sections empty and fills them a round later, but builds what a tag (``!import_call`` …)
names at once. An alias of a list whose turn has not come reaches the object as ``[]``, silently, in torchdistill's
``load_yaml_file`` too; so it is an error here, not something to mend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gkd_plugin.config.yaml_nodes import CORE, KeyPath, located, merge_sources, steps

__all__ = ["late_aliases"]

_MERGE, _TUPLE = f"{CORE}merge", f"{CORE}python/tuple"


def late_aliases(root: Node) -> list[str]:
    """Places under a tag where FullLoader would put a list or section that is still empty, one line each.

    Args:
        root: a config that :func:`~gkd_plugin.config.yaml_nodes.compose` accepted; nothing in it is changed.
    """
    return _Rehearsal().run(root)


class _Rehearsal:
    """FullLoader's order of construction, gone through without building anything."""

    def __init__(self) -> None:
        self._made: set[int] = set()
        self._filled: set[int] = set()
        self._waiting: deque[tuple[Node, KeyPath]] = deque()
        self._lines: list[str] = []

    def run(self, root: Node) -> list[str]:
        self._make(root, ())
        while self._waiting:
            node, path = self._waiting.popleft()
            for step, child, _ in _entries(node):
                self._make(child, (*path, step))
            self._filled.add(id(node))
        return self._lines

    def _make(self, node: Node, path: KeyPath) -> None:
        """Outside of tags: a list or section is made now and filled when its turn comes."""
        if id(node) in self._made:
            return
        if _is_call(node):
            self._build(node, path, node)
            return
        self._made.add(id(node))
        if node.tag == _TUPLE:
            for step, child, _ in _entries(node):
                self._make(child, (*path, step))
            self._filled.add(id(node))
        elif not isinstance(node, ScalarNode):
            self._waiting.append((node, path))

    def _build(self, node: Node, path: KeyPath, call: Node | None, mark: yaml.Mark | None = None) -> None:
        """Under a tag: everything is complete at once, except what was made before and waits for its turn.

        Args:
            node: what to build.
            path: its key path.
            call: the innermost object that takes it; ``None`` for a merged value that a section's own key replaces.
            mark: the line where it is used.
        """
        if id(node) in self._made:
            if call is not None:
                self._complain(node, path, call, mark)
            return
        self._made.add(id(node))
        taker = node if _is_call(node) else call
        kept = {id(child) for _, child in steps(node)}
        for step, child, key in _entries(node):
            where = key.start_mark if key is not None and key.start_mark else mark or node.start_mark
            self._build(child, (*path, step), taker if id(child) in kept else None, where)
        self._filled.add(id(node))

    def _complain(self, node: Node, path: KeyPath, call: Node, mark: yaml.Mark | None) -> None:
        """Names what is still empty in a node that was made before."""
        children = list(steps(node))
        if _is_call(node) or not children:
            return
        if id(node) in self._filled:
            for step, child in children:
                self._complain(child, (*path, step), call, mark)
            return
        kind = "section" if isinstance(node, MappingNode) else "list"
        self._lines.append(
            f"{located('.'.join(path), mark)}: an alias of a plain {kind} inside {call.tag} reaches torchdistill empty "
            f"(PyYAML fills it too late); write the {kind} out here, or put its anchor where the first "
            f"{call.tag} uses it"
        )


def _is_call(node: Node) -> bool:
    """Whether torchdistill builds the node at once, with everything in it."""
    return bool(node.tag.startswith("!"))


def _entries(node: Node) -> Iterator[tuple[str, Node, Node | None]]:
    """Step, child, and the child's own key, in FullLoader's order: merged pairs first, overridden ones too."""
    if isinstance(node, SequenceNode):
        yield from ((str(index), item, None) for index, item in enumerate(node.value))
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            if key.tag == _MERGE:
                for source in merge_sources(value):
                    yield from ((step, child, None) for step, child, _ in _entries(source))
        yield from ((str(key.value), value, key) for key, value in node.value if key.tag != _MERGE)
