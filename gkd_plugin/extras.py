"""The optional extra ``report``: what draws the pictures."""

from __future__ import annotations

from importlib.util import find_spec

from gkd_plugin.errors import ConfigError

__all__ = ["require_report"]


def require_report(command: str) -> None:
    """Raises ConfigError unless matplotlib, scikit-learn and SciPy are installed."""
    packages = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "scipy": "scipy"}
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{command} needs {' and '.join(missing)}: pip install 'gkd-plugin[report]'")
