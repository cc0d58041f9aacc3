"""Several configurations in turn: all of them checked before the first one trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.building import student_entry
from gkd_plugin.runner.config import RunConfig, load_config
from gkd_plugin.runner.run import RunOptions, run_config

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
            inside the default run folder ``runs/<stem>`` moves along.
        seed: of every random number.
        device: goes before ``device.default``.

    Returns:
        The summaries.

    Raises:
        ConfigError: any of the configurations cannot be used; then none was run.
    """
    folders = _folders(paths, output)
    moved: dict[str, str] = {}
    configs: list[RunConfig] = []
    for path, folder in zip(paths, folders, strict=True):
        config = load_config(path, overrides, produced=tuple(moved))
        destination = student_entry(config.plain)[1].get("dst_ckpt")
        if destination is not None:
            moved[str(destination)] = str(_relocated(Path(destination), RUNS / path.stem, folder))
        configs.append(config)
    return [
        run_config(config, RunOptions(output=folder, seed=seed, device=device, moved=moved))
        for config, folder in zip(configs, folders, strict=True)
    ]


def _folders(paths: Sequence[Path], output: Path | None) -> list[Path]:
    if output is None:
        folders = [RUNS / path.stem for path in paths]
    else:
        folders = [output] if len(paths) == 1 else [output / path.stem for path in paths]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise ConfigError(f"two configurations would write to {', '.join(sorted(twice))}: run them apart with --output")
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--output: {folder} is a file")
    return folders


def _relocated(path: Path, default: Path, folder: Path) -> Path:
    return folder / path.relative_to(default) if path.is_relative_to(default) else path
