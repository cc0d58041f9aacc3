"""What a cell's figures depend on besides its configuration: files, packages, the probe.

Folders of images, modules of the user's own and weights that a library downloads are not looked into.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from gkd_plugin.config.tree import read, walk
from gkd_plugin.runner.run_folder import package_versions, write_atomically

__all__ = ["Inputs", "inputs_of", "keep_inputs", "stale_input"]

Inputs = dict[str, str | None]
"""Name of an input → what tells whether it is the same."""

_NAME = "inputs.json"
_PACKAGE = "gkd_plugin"
_WITHOUT_FIGURES = ("cli.py", "compare", "diagnose")


def inputs_of(config: Path, probe: str | None) -> Inputs:
    """Digests of every file that the configuration names (teacher, data, class order) and of this package's sources.

    Sources that only make configurations or look at results are left out.

    Args:
        config: of the cell; paths in it are those of the working directory.
        probe: what is fitted to the teacher instead of training.
    """
    files = sorted({text for text in walk(read(config)) if _is_file(text)})
    return {_PACKAGE: _package(), "probe": probe, **package_versions(), **{path: _digest(path) for path in files}}


def keep_inputs(inputs: Inputs, folder: Path) -> None:
    """Leaves them in a run folder."""
    text = json.dumps(inputs, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / _NAME, lambda path: path.write_text(text, encoding="utf-8"))


def stale_input(inputs: Inputs, folder: Path) -> str | None:
    """Which input has changed since the run in this folder began; ``None`` where none has.

    A file that was not there when the run began does not count.
    """
    try:
        kept = json.loads((folder / _NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    if not isinstance(kept, dict) or _PACKAGE not in kept:
        return "what it was made from is not on record"
    changed = next((name for name in kept if inputs.get(name) != kept[name]), None)
    return None if changed is None else f"{changed} has changed since it ran"


def _is_file(value: object) -> bool:
    try:
        return isinstance(value, str) and Path(value).expanduser().is_file()
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
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if name.parts[0] not in _WITHOUT_FIGURES:
            digest.update(f"{name.as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()
