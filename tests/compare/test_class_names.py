"""Whether logit distillation may take the teacher's logits for those of the student's classes."""

import logging
from pathlib import Path

import pytest

from gkd_plugin.compare.cell import cell_config
from gkd_plugin.compare.class_names import different_classes
from gkd_plugin.compare.compare import Comparison, compare
from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.method import load_method
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.yaml_nodes import compose
from gkd_plugin.models import timm_model
from gkd_plugin.runner.checkpoints import WeightFile, save_student
from tests.compare.fakes import CONFIG

DIGITS = [("train", "train"), ("val", "test"), ("test", "test")]


def _subset(name, split, classes):
    """Of the digits: the classes given, or the teacher's own, the first four."""
    key = "class_subset" if classes else "overlap_subset"
    kwargs = f"classes: {list(classes)}" if classes else "role: 'student'\n        num_classes: 4\n        overlap: 1.0"
    return f"""
  {name}: !import_call
    key: 'gkd_plugin.data.{key}'
    init:
      kwargs:
        {kwargs}
        dataset: !import_call
          key: 'gkd_plugin.data.digits'
          init: {{kwargs: {{split: '{split}', size: 32, rgb: True}}}}"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A configuration of digits for a teacher whose checkpoint names its classes (with a count alone: none)."""
    monkeypatch.chdir(tmp_path)

    def make(classes, names):
        sets = "".join(_subset(name, split, classes) for name, split in DIGITS)
        text = f"dependencies:\n  - name: 'gkd_plugin'\ndatasets:{sets}\n{CONFIG[CONFIG.index('models:') :]}"
        text = text.replace("teacher.pt", "teacher.safetensors")
        model = timm_model("test_byobnet", num_classes=4)
        save_student(model, Path("teacher.safetensors"), "test_byobnet", classes=names)
        Path("tiny.yaml").write_text(text, encoding="utf-8")
        return cell_config(compose("tiny.yaml"), load_method("kd"), Setting(), Path("cell.yaml"))

    return make


@pytest.mark.parametrize(
    ("classes", "names", "reason"),
    [
        ((0, 2, 4, 6), list("0246"), ""),
        ((0, 2, 4, 6), list("0264"), "needs the same class order"),
        ((0, 2, 4, 6), list("0247"), "needs the same classes"),
        ((0, 2, 4, 6), list("1357"), "needs the same classes"),
    ],
)
def test_names_of_both_sides_decide(made, classes, names, reason):
    config = made(classes, names)
    assert different_classes(config) == reason


def test_without_names_nothing_is_known(made):
    config = made((0, 2, 4, 6), None)
    assert different_classes(config) is None


@pytest.mark.parametrize(
    ("names", "reason"),
    [("0123", ""), ("wxyz", ""), ("0132", "needs the same class order"), ("0129", "needs the same classes")],
)
def test_where_the_text_says_so_names_without_anything_in_common_may_be_spelt_otherwise(made, names, reason):
    config = made(None, list(names))
    assert different_classes(config) == reason


def test_the_table_says_so(made):
    made((0, 2, 4, 6), list("1357"))
    table, (result,) = compare(Comparison(Path("tiny.yaml"), ["kd"], seeds=[0], output=Path("grid")))
    assert result.status == "not served"
    assert "needs the same classes" in table


def test_what_nothing_shows_is_warned_of(made, caplog, monkeypatch):
    made((0, 2, 4, 6), None)
    monkeypatch.setattr("gkd_plugin.compare.compare.run_grid", lambda cells, *given: [Result(cells[0], "finished")])
    compare(Comparison(Path("tiny.yaml"), ["kd"], seeds=[0], output=Path("grid")))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("kd: nothing shows whether the student's classes are the teacher's, in the same order")


WRAPPER = "auxiliary_model_wrapper: {key: 'refilled_teacher', kwargs: {preprocessing: 'data'"


@pytest.mark.parametrize(
    ("asked", "names", "reason"),
    [
        ("class_map: {'0': 0, '2': 1, '4': 2, '6': 3}", list("wxyz"), ""),
        ("class_map: {'0': 'w', '2': 'x', '4': 'y', '6': 'z'}", list("wxyz"), ""),
        ("class_map: {'0': 1, '2': 0, '4': 2, '6': 3}", None, "needs the same class order"),
        ("class_map: {'0': 0, '2': 1, '4': 2}", list("0246"), "needs the same classes"),
        ("class_map: 'names', teacher_classes: ['6', '4', '2', '0']", None, "needs the same class order"),
        ("class_map: 'names', teacher_classes: ['0', '2', '4', '6']", None, ""),
        ("class_map: 'names'", list("wxyz"), "needs the same classes"),
        ("teacher_classes: ['0', '2', '4', '6']", None, ""),
        ("teacher_classes: ['0', '2', '6', '4']", list("0246"), "needs the same class order"),
    ],
)
def test_what_the_wrapper_says_goes_first(made, asked, names, reason):
    made((0, 2, 4, 6), names)
    text = Path("tiny.yaml").read_text("utf-8")
    assert WRAPPER in text
    Path("tiny.yaml").write_text(text.replace(WRAPPER, f"{WRAPPER}, {asked}"), encoding="utf-8")
    config = cell_config(compose("tiny.yaml"), load_method("kd"), Setting(), Path("cell.yaml"))
    assert different_classes(config) == reason


def test_weights_from_an_address_name_no_classes(made, monkeypatch):
    config = made((0, 2, 4, 6), list("0246"))
    asked = []

    def read(path, where):
        asked.append(path)
        return WeightFile({}, None)

    monkeypatch.setattr("gkd_plugin.compare.class_names.read_weights", read)
    config.tree["models"]["teacher_model"]["src_ckpt"] = "http://127.0.0.1:1/teacher.pt"
    assert different_classes(config) is None
    assert asked == ["http://127.0.0.1:1/teacher.pt"]
