"""The one exception that means "the user can mend this": shown as one line, exit code 2.

Imports nothing but the standard library, so every layer may use it.
"""

import difflib
import math
import sysconfig
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

_EXTRAS = {
    "report": {"jinja2": "Jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn", "scipy": "scipy"},
    "export": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    **{engine: {engine: engine} for engine in ("tensorboard", "trackio", "wandb")},
}
"""Module → package, as in pyproject.toml."""


_LESS_MEMORY = (
    "what needs less memory: a smaller batch_size, device.precision: bf16, a teacher_cache, a smaller teacher "
    "(device.teacher_dtype: bf16), one elsewhere (device.teacher: cuda:1, or cpu) or divided (auto, or sharded)"
)


class ConfigError(ValueError):
    """A configuration, file or batch that cannot be used as given; the message says what would be allowed."""


@contextmanager
def user_can_mend(where: str) -> Iterator[None]:
    """Turns a ``ValueError`` of the functional core into a ConfigError that begins with ``where``."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


@contextmanager
def told_at(where: str) -> Iterator[None]:
    """Puts ``where`` before the message of a ConfigError: a file, a key path."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its type where it has none. What helps, where memory is out."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{line.partition('. ')[0]}; {_LESS_MEMORY}" if type(error).__name__ == "OutOfMemoryError" else line


def raised_in(error: BaseException) -> str:
    """The exception's type and the innermost line that raised it, of the user's own code where that took part."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(Path(__file__).parent))
    own = [frame for frame in frames if not frame.filename.startswith((*installed, "<"))]
    frame = (own or frames)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


def nearest(given: object, allowed: Iterable[str]) -> str:
    """Ends an error message: the nearest allowed names, or all of them where few.

    >>> nearest('emebdding', ['embedding', 'classifier'])
    "did you mean 'embedding'? (allowed: 'classifier', 'embedding')"
    """
    names = sorted({str(name) for name in allowed})
    if not names:
        return "there are none"
    matches = difflib.get_close_matches(str(given), names, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
    listing = f"allowed: {', '.join(repr(name) for name in names)}" if len(names) <= 12 else ""
    if hint and listing:
        return f"{hint} ({listing})"
    return hint or listing or f"none of the {len(names)} known names is close"


def nearest_beside(path: Path, *, is_folder: bool = False) -> str:
    """Ends a message about a missing file or folder: the nearest names beside the first missing part of its path.

    These are those of folders. For a file they are also those of files with its suffix.
    """
    missing = next((part for part in [*reversed(path.parents), path] if not part.exists()), None)
    if missing is None:
        return f"; it is a {'folder' if path.is_dir() else 'file'}"
    suffix = None if is_folder or missing != path else path.suffix
    others = missing.parent.glob("[!.]*")
    names = sorted(other.name for other in others if other.is_dir() or other.suffix == suffix)
    if close := difflib.get_close_matches(missing.name, names, cutoff=0.5):
        return f"; did you mean {' or '.join(str(missing.parent / name) for name in close)}?"
    held = ", ".join(names[:12]) + ", …" * (len(names) > 12) if names else f"no {suffix or 'folder'}"
    return f"; {missing.parent.absolute()} holds {held}"


def one_of(argument: str, value: object, allowed: Collection[str]) -> None:
    """Raises ConfigError where the value is none of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{argument}: {value!r} is unknown; {nearest(value, allowed)}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an ``int`` or a ``float``, and no ``bool``."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole_number(argument: str, value: object, *, low: int, high: int | None = None) -> int:
    """The value as ``int``; raises ConfigError where it is not a whole number, or outside [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        allowed = f"a whole number from {low} up" if high is None else f"a whole number in {low} … {high}"
        raise ConfigError(f"{argument} must be {allowed}, got {value!r}")
    return value


def listed(name: str, value: Any, kind: type, what: str, *, above_zero: bool = False, most: int = 99) -> Any:
    """The numbers given, or the only one, as a tuple of that kind; ``None`` for ``None``. Raises ConfigError."""
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value]
    fit = [x for x in values if is_number(x) and math.isfinite(x) and (kind is float or isinstance(x, int))]
    if not values or fit != values or len(values) > most or (above_zero and min(fit) <= 0):
        raise ConfigError(f"{name}: must be {what}, got {value!r}")
    return tuple(map(kind, values))


def require_extra(extra: str, needs: str) -> None:
    """Raises ConfigError unless the packages of an optional extra are installed; ``needs`` is what needs them."""
    missing = [name for module, name in _EXTRAS[extra].items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{needs} needs {' and '.join(missing)}: pip install 'gkd-plugin[{extra}]'")
