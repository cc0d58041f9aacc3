"""ReFilled for torchdistill: knowledge distillation when teacher and student do not share their classes.

``import gkd_plugin`` registers the parts with torchdistill's registries, so a torchdistill YAML needs only
``dependencies: [{name: 'gkd_plugin'}]``. Where torchdistill or timm is not installed, only
``gkd_plugin.functional`` (which needs torch and NumPy) can be used, and a warning says so.
"""

import importlib.util
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gkd_plugin import functional
from gkd_plugin.errors import ConfigError

__all__ = ["ConfigError", "__version__", "functional"]

try:
    __version__ = version("gkd-plugin")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_missing = [name for name in ("torchdistill", "timm") if importlib.util.find_spec(name) is None]
if _missing:
    _effect = "nothing is registered with torchdistill, only gkd_plugin.functional works"
    warnings.warn(f"{' and '.join(_missing)} not installed: {_effect}", stacklevel=2)
else:
    from gkd_plugin import data, losses, models, teacher
    from gkd_plugin.box.upstream import install_own_processes, install_prepare_hook, install_streams

    install_prepare_hook()
    install_own_processes()
    install_streams()
    __all__ += ["DistilledStudent", "data", "distill", "losses", "models", "teacher"]


_LATE = {"DistilledStudent": "gkd_plugin.deploy.student", "distill": "gkd_plugin.recipe"}


def __getattr__(name: str) -> Any:
    """What training and torchdistill's scripts need not import."""
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
