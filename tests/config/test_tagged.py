"""What dotted names import."""

from __future__ import annotations

import pytest

from gkd_plugin.config.tagged import Tagged, resolve_target
from gkd_plugin.errors import ConfigError
from tests.config.yaml_samples import write


def test_module_that_fails_to_import(tmp_path, monkeypatch):
    write(tmp_path, "import module_nobody_has\n", "breaks_on_import.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"breaks_on_import cannot be imported: ModuleNotFoundError: .*nobody_has"):
        resolve_target(Tagged("!import_get", {"key": "breaks_on_import.x"}))
