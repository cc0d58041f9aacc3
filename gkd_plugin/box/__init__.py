"""Everything that exists because of torchdistill: its registries, hooks and boxes.

:func:`register` is for our parts: torchdistill's registries overwrite silently, and it refuses keys that are held.
"""

from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from gkd_plugin.errors import ConfigError

Part = TypeVar("Part", bound=Callable[..., Any])


def register(registry: MutableMapping[str, Any], decorator: Callable[..., Any], key: str) -> Callable[[Part], Part]:
    """Decorator: registers a class or function under ``key`` through torchdistill's own ``decorator``.

    Raises ConfigError where another object holds the key in its ``registry``; a reloaded module's own may come again.
    """

    def decorate(part: Part) -> Part:
        holder = registry.get(key)
        if holder is not None and _name(holder) != _name(part):
            raise ConfigError(f"registry key {key!r} is already held by {_name(holder)}; {_name(part)} cannot have it")
        decorator(key=key)(part)
        return part

    return decorate


def _name(part: Any) -> str:
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', repr(part))}"
