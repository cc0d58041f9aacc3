"""The one exception that means "the user can mend this": shown as one line, exit code 2.

Imports nothing, so every layer may raise it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ConfigError", "nearest", "nearest_beside", "one_of", "told_at", "user_can_mend", "whole_number"]


class ConfigError(ValueError):
    """A configuration, file or batch that cannot be used as given; the message says what would be allowed.

    The command line prints it as one line and exits with 2. In Python it is an ordinary ``ValueError``.
    """


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
    """Puts ``where`` before the message of a ConfigError: a file, a key path.

    >>> with told_at('train.stage1.'):
    ...     raise ConfigError('optimizer: missing')
    Traceback (most recent call last):
    gkd_plugin.errors.ConfigError: train.stage1.optimizer: missing
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def nearest(given: object, allowed: Iterable[str], *, count: int = 3) -> str:
    """Ends an error message: the nearest allowed names, or all of them where few.

    >>> nearest('emebdding', ['embedding', 'classifier'])
    "did you mean 'embedding'? (allowed: 'classifier', 'embedding')"
    >>> nearest('xyz', [])
    'there are none'
    """
    names = sorted({str(name) for name in allowed})
    if not names:
        return "there are none"
    matches = difflib.get_close_matches(str(given), names, n=count, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
    listing = f"allowed: {', '.join(repr(name) for name in names)}" if len(names) <= 12 else ""
    if hint and listing:
        return f"{hint} ({listing})"
    return hint or listing or f"none of the {len(names)} known names is close"


def nearest_beside(path: Path) -> str:
    """Ends a message about a missing file or folder: the nearest names beside it with the same ending, if any."""
    names = [other.name for other in path.parent.glob(f"*{path.suffix}")]
    return f"; in its folder {nearest(path.name, names)}" if names else ""


def one_of(argument: str, value: object, allowed: Collection[str]) -> None:
    """Raises ConfigError where the value is none of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{argument}: {value!r} is unknown; {nearest(value, allowed)}")


def whole_number(argument: str, value: object, *, low: int, high: int | None = None) -> int:
    """The value as ``int``.

    Raises:
        ConfigError: it is not a whole number, or lies outside [low, high].
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        allowed = f"a whole number from {low} up" if high is None else f"a whole number in {low} … {high}"
        raise ConfigError(f"{argument} must be {allowed}, got {value!r}")
    return value
