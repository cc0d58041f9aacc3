"""Construction: the objects that a config's tags name come to life here, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.nodes import Node

from gkd_plugin.config.tagged import resolve_target, summary
from gkd_plugin.config.yaml_nodes import first_paths, is_tagged, located, place, register_tags
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError

__all__ = ["construct"]


def construct(node: Node) -> dict[str, Any]:
    """Builds the config with torchdistill's tags: datasets and whatever else they name come to life here.

    An object that several aliases name is built once. The graph is left as it was.

    Raises:
        ConfigError: an object could not be built; names the key path, the line and the reason. The exception itself
            is the cause.
    """
    register_tags()
    node = copy.deepcopy(node)  # FullLoader writes the merged keys into the mappings
    loader = _Loader(first_paths(node))
    try:
        built: dict[str, Any] = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{place(error.problem_mark or error.context_mark)}: {error.problem}") from error
    return built


class _LocatedError(ConfigError):
    """Carries the key path of the innermost object that failed: outer objects pass it through."""


class _Loader(yaml.FullLoader):
    """torchdistill's loader, for a graph that is already composed."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        super().__init__("")
        self._paths = paths

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _LocatedError:
            raise
        except Exception as error:
            if not is_tagged(node):
                raise
            where = located(self._paths.get(id(node), ""), node.start_mark)
            raise _LocatedError(f"{where}: {_explained(node, error)}") from error


def _explained(node: Node, error: Exception) -> str:
    """Why the object failed; for a name that cannot be imported, which part of it and the nearest names."""
    if isinstance(error, yaml.MarkedYAMLError):
        return str(error.problem)
    if not isinstance(error, ConfigError):
        try:
            resolve_target(to_plain(node))
        except ConfigError as reason:
            return str(reason)
    return summary(error)
