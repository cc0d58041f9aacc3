"""What a cell's figures hang on besides its configuration: files, this package, the probe; so that none goes stale."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gkd_plugin.runner.checkpoints import write_atomically
from gkd_plugin.runner.yaml_nodes import compose
from gkd_plugin.runner.yaml_plain import Tagged, to_plain

__all__ = ["Inputs", "changed_input", "inputs_of", "keep_inputs"]

Inputs = dict[str, str | None]
"""Name of an input → what tells whether it is the same."""

_NAME = "inputs.json"
_PACKAGE = "gkd_plugin"


def inputs_of(config: Path, probe: str | None) -> Inputs:
    """Digests of every file that the configuration names (teacher, data, class order) and of this package's sources.

    Folders of images are not looked into.

    Args:
        config: of the cell; paths in it are those of the working directory.
        probe: what is fitted to the teacher instead of training.
    """
    files = sorted({text for text in _texts(to_plain(compose(config))) if _is_file(text)})
    return {_PACKAGE: _package(), "probe": probe, **{path: _digest(path) for path in files}}


def keep_inputs(inputs: Inputs, folder: Path) -> None:
    """Leaves them in a run folder."""
    text = json.dumps(inputs, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / _NAME, lambda path: path.write_text(text, encoding="utf-8"))


def changed_input(inputs: Inputs, folder: Path) -> str | None:
    """The name of an input that is not as a run folder has it; ``None`` where all are."""
    try:
        kept = json.loads((folder / _NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _NAME
    if not isinstance(kept, dict):
        return _NAME
    return next((name for name in {**inputs, **kept} if inputs.get(name) != kept.get(name)), None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Tagged):
        yield from _texts(value.value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL, no home
        return False


def _digest(path: str) -> str:
    file = Path(path).expanduser()
    state = file.stat()
    return _content(file, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=256)
def _content(file: Path, modified: int, size: int) -> str:  # noqa: ARG001  # a changed file is read again
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@functools.cache
def _package() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path for suffix in ("py", "yaml") for path in root.rglob(f"*.{suffix}")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
