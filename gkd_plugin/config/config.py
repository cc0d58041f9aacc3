"""A run's config: a torchdistill YAML, overridden and validated, not yet built."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gkd_plugin.config.nodes import compose
from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.stages import Stage, stages_of
from gkd_plugin.config.tree import build, dump, plain_tree
from gkd_plugin.config.validate import problems
from gkd_plugin.errors import ConfigError

__all__ = ["RunConfig", "checked_config", "load_config"]


@dataclass(frozen=True)
class RunConfig:
    """A valid config.

    Attributes:
        path: the file it came from.
        tree: the config as a plain tree; read it, do not change it (aliased sections are one dict).
        notices: what the user should know about the overrides, one line each.
    """

    path: Path
    tree: dict[str, Any]
    notices: tuple[str, ...] = ()

    @cached_property
    def stages(self) -> list[Stage]:
        """Its stages in order."""
        return stages_of(self.tree)

    @cached_property
    def text(self) -> str:
        """The config as YAML that torchdistill loads."""
        return dump(self.tree)

    @property
    def stem(self) -> str:
        """The file's name without folder and suffix."""
        return self.path.stem

    def build(self) -> dict[str, Any]:
        """Constructs datasets and whatever else the tags name. Each call builds anew: call it once.

        Raises:
            ConfigError: an object could not be built; names its key path and the reason.
        """
        built: dict[str, Any] = build(self.tree)
        return built


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, produced: Collection[str] = (), needs_checkpoints: bool = True
) -> RunConfig:
    """Reads, overrides and validates a config; builds nothing.

    Args:
        path: a torchdistill YAML.
        overrides: ``key.path=value`` assignments, see :func:`~gkd_plugin.config.overrides.apply_overrides`.
        produced: checkpoints that configs before this one will have written when this one runs.
        needs_checkpoints: whether a ``src_ckpt`` that does not exist is an error.

    Raises:
        ConfigError: the file cannot be read, an override does not apply, or the config is not valid (all problems, one
            line each).
    """
    root = compose(path)
    notices = apply_overrides(root, overrides)
    tree = plain_tree(root)
    return checked_config(Path(path), tree, notices, produced=produced, needs_checkpoints=needs_checkpoints)


def checked_config(
    path: Path,
    tree: Any,
    notices: Sequence[str] = (),
    *,
    produced: Collection[str] = (),
    needs_checkpoints: bool = True,
) -> RunConfig:
    """The config of a tree, validated; arguments and errors as :func:`load_config`."""
    found = problems(tree, produced=produced, needs_checkpoints=needs_checkpoints)
    if len(found) == 1:
        raise ConfigError(f"{path}: {found[0]}")
    if found:
        raise ConfigError("\n".join([f"{path}: {len(found)} problems", *(f"  {line}" for line in found)]))
    return RunConfig(path, tree, tuple(notices))
