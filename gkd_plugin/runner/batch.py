"""Several configurations in turn: all of them validated before the first one trains."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_plugin.config.config import RunConfig, load_config
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.devices import read_placement
from gkd_plugin.runner.models import student_entry
from gkd_plugin.runner.run import RunOptions, run_config
from gkd_plugin.runner.run_folder import check_run_folder

__all__ = ["run_all"]

RUNS = Path("runs")


def run_all(
    paths: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    seed: int = 0,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Trains each configuration, in order; a later one may load what an earlier one writes (``dst_ckpt``).

    Args:
        paths: the configurations.
        overrides: ``key.path=value``, applied to each.
        output: the run folder, or with several configurations the folder that holds one for each. A ``dst_ckpt``
            inside the default run folder ``runs/<stem>`` moves along, and so does a ``src_ckpt`` that names it.
        seed: of every random number.
        device: goes before ``device.default``.

    Returns:
        The summaries.

    Raises:
        ConfigError: a configuration cannot be used. What its text alone shows is found before any of them runs.
    """
    folders = _folders(paths, output)
    written: dict[str, str] = {}
    configs: list[RunConfig] = []
    for path, folder in zip(paths, folders, strict=True):
        config = load_config(path, overrides, produced=tuple(written))
        moves = _moved_checkpoints(config, folder, written)
        if moves:
            config = load_config(path, [*overrides, *moves], produced=tuple(written.values()))
        with told_at(f"{path}: "):
            read_placement(config.tree, device)
        destination = student_entry(config.tree)[1].get("dst_ckpt")
        check_run_folder(folder, None if destination is None else Path(destination))
        configs.append(config)
    return [
        run_config(config, RunOptions(output=folder, seed=seed, device=device))
        for config, folder in zip(configs, folders, strict=True)
    ]


def _moved_checkpoints(config: RunConfig, folder: Path, written: dict[str, str]) -> list[str]:
    """Overrides that point the checkpoints of a config to where this command writes them.

    Args:
        config: a configuration.
        folder: its run folder.
        written: checkpoint path in the YAML → where this command writes it, of the configurations before; this one's
            is added.
    """
    moves = {}
    for name, entry in config.tree["models"].items():
        source = (entry or {}).get("src_ckpt")
        if source is not None and _absolute(source) in written:
            moves[f"models.{name}.src_ckpt"] = source, written[_absolute(source)]
    where, student = student_entry(config.tree)
    destination = student.get("dst_ckpt")
    if destination is not None:
        default = RUNS / config.stem
        is_inside = Path(destination).is_relative_to(default)
        moved = str(folder / Path(destination).relative_to(default)) if is_inside else destination
        moves[f"{where}.dst_ckpt"] = destination, moved
        written[_absolute(destination)] = moved
    return [f"{key}={json.dumps(new)}" for key, (old, new) in moves.items() if _absolute(old) != _absolute(new)]


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute() keeps '..'


def _folders(paths: Sequence[Path], output: Path | None) -> list[Path]:
    """The run folder of each configuration.

    Raises:
        ConfigError: two are one folder, or one cannot be a run folder.
    """
    if output is None:
        folders = [RUNS / path.stem for path in paths]
    else:
        folders = [output] if len(paths) == 1 else [output / path.stem for path in paths]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise ConfigError(f"two configurations would write to {', '.join(sorted(twice))}: run them apart with --output")
    here = Path.cwd().resolve()
    for folder in folders:
        if here.is_relative_to(folder.resolve()):
            raise ConfigError(f"--output: {folder} holds the working directory, so it cannot be a run folder")
    return folders
