"""The optional extra ``report``: what draws the pictures."""

from __future__ import annotations

from importlib.util import find_spec

from gkd_plugin.errors import ConfigError

__all__ = ["require_report"]


def require_report() -> None:
    """Raises ConfigError unless matplotlib and scikit-learn are installed."""
    packages = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}
    missing = [name for module, name in packages.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"diagnose needs {' and '.join(missing)}: pip install 'gkd-plugin[report]'")
