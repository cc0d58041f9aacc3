"""A run's config: a torchdistill YAML, overridden and validated, not yet built."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode

from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.validation import problems
from gkd_plugin.config.yaml_aliases import late_aliases
from gkd_plugin.config.yaml_construct import construct
from gkd_plugin.config.yaml_nodes import compose, dump
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError

__all__ = ["RunConfig", "checked_config", "load_config"]


@dataclass(frozen=True)
class RunConfig:
    """A valid config.

    Attributes:
        path: the file it came from.
        text: the config with overrides applied, as YAML that torchdistill loads.
        plain: the config as plain data; read it, do not change it (aliased sections are one dict).
        notices: what the user should know about the overrides, one line each.
    """

    path: Path
    text: str
    plain: Mapping[str, Any]
    notices: tuple[str, ...]
    root: MappingNode = field(repr=False, compare=False)

    def build(self) -> dict[str, Any]:
        """Constructs datasets and whatever else the tags name. Each call builds anew: call it once.

        Raises:
            ConfigError: an object could not be built; names its key path and the reason.
        """
        return construct(self.root)

    @property
    def stem(self) -> str:
        """The file's name without folder and suffix."""
        return self.path.stem


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    produced: Collection[str] = (),
    needs_checkpoints: bool = True,
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
    path = Path(path)
    root = compose(path)
    notices = apply_overrides(root, overrides)
    return checked_config(path, root, notices, produced=produced, needs_checkpoints=needs_checkpoints)


def checked_config(
    path: Path,
    root: MappingNode,
    notices: Sequence[str] = (),
    *,
    produced: Collection[str] = (),
    needs_checkpoints: bool = True,
) -> RunConfig:
    """The config that a node graph holds, validated; arguments and errors as :func:`load_config`."""
    plain = to_plain(root)
    found = [*problems(plain, produced=produced, needs_checkpoints=needs_checkpoints), *late_aliases(root)]
    if len(found) == 1:
        raise ConfigError(f"{path}: {found[0]}")
    if found:
        raise ConfigError("\n".join([f"{path}: {len(found)} problems", *(f"  {line}" for line in found)]))
    return RunConfig(path=path, text=dump(root), plain=plain, notices=tuple(notices), root=root)
