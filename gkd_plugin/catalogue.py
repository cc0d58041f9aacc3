"""``refilled configs`` and ``refilled models``: what there is to choose from."""

import re
import shutil
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch
from timm.models import get_arch_name

from gkd_plugin.data.files import first_difference, write_atomically
from gkd_plugin.errors import ConfigError, nearest
from gkd_plugin.runner.run_folder import aligned

_BUILT = Path(__file__).parent / "configs"
CONFIGS = _BUILT if _BUILT.is_dir() else Path(__file__).parents[1] / "configs"
"""The shipped configurations: in the package where a wheel was installed, beside it in a clone."""
MOST_MODELS = 30


def list_configs(name: str | None) -> str:
    """Path and first sentence of each shipped configuration, or of those in a folder."""
    return "\n".join(f"{path.relative_to(CONFIGS).as_posix()}\n    {_first_sentence(path)}" for path in _shipped(name))


def show_configs(name: str) -> str:
    """The text of a shipped configuration, or of all in a folder."""
    return "\n".join(path.read_text(encoding="utf-8") for path in _shipped(name))


def copy_configs(name: str) -> str:
    """Copies a shipped configuration, or a folder of them, to ``configs/``; says which.

    Raises:
        ConfigError: there is no such name, or a file is there and differs.
    """
    copies = {path: Path("configs") / path.relative_to(CONFIGS) for path in _shipped(name)}
    present = {path for path, copy in copies.items() if copy.exists()}
    for path in sorted(present):
        if differs := first_difference(copies[path], path.read_text("utf-8")):
            raise ConfigError(f"{copies[path]} is there and differs: {differs}; move it away first")
    for path, copy in copies.items():
        if path not in present:
            write_atomically(copy, partial(shutil.copyfile, path))
    return "\n".join(f"{copy}{' (there already)' if path in present else ''}" for path, copy in copies.items())


def _shipped(name: str | None) -> list[Path]:
    """Those in the folder ``name``, or the one of that name; all for ``None``."""
    names: dict[str, list[Path]] = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        relative = PurePosixPath(path.relative_to(CONFIGS).as_posix())
        for known in (relative.stem, relative.name, relative, *relative.parents):
            names.setdefault(str(known), []).append(path)
    wanted = "." if name is None else str(PurePosixPath(name)).removeprefix("configs/")
    if wanted not in names:
        known = {key for key in names if not key.endswith(".yaml")} - {"."}
        raise ConfigError(f"NAME: no configuration {name!r} is shipped; {nearest(wanted, known)}")
    return names[wanted]


def _first_sentence(path: Path) -> str:
    lines = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0].splitlines()  # type: ignore[index]
    text = " ".join(line.lstrip("# ") for line in lines if not line.startswith("# refilled "))
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text.strip())[0]


def models_table(pattern: str) -> str:
    """timm's models of a pattern such as ``*vit_small*``, or with ``pattern`` in their name; allocates no weights.

    Raises:
        ConfigError: timm has none.
    """
    wanted = get_arch_name(pattern)  # without a tag
    names = timm.list_models(wanted if re.search(r"[*?\[]", wanted) else f"*{wanted}*")
    if not names:
        raise ConfigError(f"PATTERN: timm has no model {pattern!r}; {nearest(wanted, timm.list_models())}")
    rows = [("model", "parameters", "embedding", "image", "pretrained tags"), *map(_model_row, names[:MOST_MODELS])]
    left_out = len(names) - MOST_MODELS
    return aligned(rows) + (f"\n… and {left_out} more: give a narrower pattern" if left_out > 0 else "")


def _model_row(name: str) -> tuple[str, ...]:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    height, width = model.pretrained_cfg["input_size"][-2:]
    default = model.pretrained_cfg["tag"]
    tags = [other.partition(".")[2] for other in timm.list_pretrained(f"{name}.*")]
    tags.sort(key=lambda tag: tag != default)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = str(height) if height == width else f"{height} × {width}"
    return name, f"{parameters:,}", str(model.head_hidden_size), size, ", ".join(tags) or "–"
