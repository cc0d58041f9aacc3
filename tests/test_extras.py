"""Without the extra, one line says how to get it."""

import sys

import pytest

from gkd_plugin.errors import ConfigError
from gkd_plugin.extras import require_report


def test_nothing_is_missing_here():
    require_report("diagnose")


@pytest.mark.parametrize(
    ("modules", "names"),
    [(["matplotlib"], "matplotlib"), (["matplotlib", "sklearn"], "matplotlib and scikit-learn")],
)
def test_what_is_missing_is_named(monkeypatch, modules, names):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"^diagnose needs {names}: pip install 'gkd-plugin\[report\]'$"):
        require_report("diagnose")
