"""timm's architectures: one of each family always, all of them by hand."""

import pytest
import timm
from timm.models import is_model_in_modules

from tests.benchmarks.architectures import Row, examine, one_of_each_family, read, sweep
from tests.models.test_embedding_tap import KINDS

VALUES_TESTED = {module for module in timm.list_modules() for name in KINDS if is_model_in_modules(name, [module])}


@pytest.mark.parametrize("name", one_of_each_family(VALUES_TESTED))
def test_one_of_each_family(name):
    assert not examine(name).verdict.startswith("FAILED")


def test_a_stopped_sweep_goes_on_and_what_fails_is_a_row(tmp_path, monkeypatch):
    assert examine("resnet51").verdict.startswith("FAILED: ConfigError: timm has no model 'resnet51'")
    path = tmp_path / "table.csv"
    sweep(["test_resnet"], path)
    asked = []
    monkeypatch.setattr(
        "tests.benchmarks.architectures.examine", lambda name: asked.append(name) or Row(name, 1, "", "teacher")
    )
    rows = sweep(["test_resnet", "test_vit"], path)
    assert asked == ["test_vit"]
    assert rows == list(read(path))
    assert rows[0] == Row("test_resnet", rows[0].embedding_width, "fc", "teacher and student")


@pytest.mark.slow
def test_every_architecture(request):
    """About ten minutes; kept in pytest's cache, so that a stopped sweep goes on."""
    names = timm.list_models()
    rows = sweep(names, request.config.cache.mkdir("architectures") / f"timm-{timm.__version__}.csv")
    assert {row.name for row in rows} == set(names)
    assert [row for row in rows if row.verdict.startswith("FAILED")] == []
    encoders = [row.name for row in rows if row.verdict.startswith("teacher only")]
    assert all(name.endswith("_enc") for name in encoders)
