"""What a method cannot serve, and whether the teacher's logits may be taken for those of the student's classes."""

import logging
from pathlib import Path

import pytest

from gkd_plugin.compare.cell import cell_config
from gkd_plugin.compare.compare import Comparison, compare
from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.method import load_method, method_names
from gkd_plugin.compare.obstacles import different_classes, obstacle, untrained_student
from gkd_plugin.compare.setting import Setting
from gkd_plugin.config.config import load_config
from gkd_plugin.config.tree import read
from gkd_plugin.models import timm_model
from gkd_plugin.runner.weights import WeightFile, save_student
from tests.compare.fakes import CONFIG, write_config, write_few_shot, write_incremental

REFILLED = [name for name in method_names() if name.startswith("refilled")]
NO_OLD = dict.fromkeys(("lwf", "joint-training"), "needs old and new classes")
SAME = dict.fromkeys(("kd", "dist", "srd"), "needs the same classes")
NO_PAIRS = dict.fromkeys(
    [name for name in REFILLED if name != "refilled-stage2-only"] + ["config"],
    "needs two shots or ClassBalancedBatchSampler",
)
NO_SAMPLE = dict.fromkeys([*REFILLED, "config", "teacher-ncm", "student-ncm"], "needs a sample of each class")


def made(tree, method, setting=None):
    return cell_config(tree, load_method(method), setting or Setting(), Path("cell.yaml"))


@pytest.mark.parametrize(
    ("write", "setting", "in_the_way"),
    [
        (write_config, Setting(50.0), SAME | NO_OLD),
        (write_config, Setting(100.0), NO_OLD),
        (write_few_shot, Setting(shots=2), SAME | NO_OLD),
        (write_few_shot, Setting(shots=1), SAME | NO_OLD | NO_PAIRS),
        (write_incremental, Setting(memory=1), SAME),
        (write_incremental, Setting(memory=0), SAME | NO_SAMPLE),
    ],
)
def test_what_is_in_the_way(write, setting, in_the_way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = read(write(tmp_path))
    reasons = {name: obstacle(load_method(name), made(tree, name, setting)) for name in method_names()}
    assert {name: reason for name, reason in reasons.items() if reason} == in_the_way


def test_batches_with_several_views_of_an_image_serve_one_shot():
    config = Path(__file__).parents[2] / "configs/digits/digits_fewshot_refilled.yaml"
    tree = load_config(config, ["models.teacher_model.src_ckpt=null"]).tree
    for name in ("refilled", "refilled-joint"):
        assert obstacle(load_method(name), made(tree, name, Setting(shots=1))) == ""


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("ce", ""),
        ("teacher-ncm", ""),
        ("scratch", "is the same as ce: random weights"),
        ("student-ncm", "needs a student with trained weights"),
    ],
)
def test_methods_about_trained_weights_need_some(method, reason, written):
    trained = written(("    dst_ckpt:", "    src_ckpt: 'teacher.pt'\n    dst_ckpt:"))
    assert untrained_student(load_method(method), trained) == ""
    assert untrained_student(load_method(method), written()) == reason


# --- the teacher's own classes ---------------------------------------------------------------------------------------


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


WRAPPER = "auxiliary_model_wrapper: {key: 'refilled_teacher', kwargs: {preprocessing: 'data'"


@pytest.fixture
def kd(tmp_path, monkeypatch):
    """A cell of digits for a teacher whose checkpoint names its classes (with a count alone: none)."""
    monkeypatch.chdir(tmp_path)

    def make(classes, names, asked="", size=4):
        sets = "".join(_subset(*split, classes) for split in [("train", "train"), ("val", "test"), ("test", "test")])
        text = f"dependencies:\n  - name: 'gkd_plugin'\ndatasets:{sets}\n{CONFIG[CONFIG.index('models:') :]}"
        assert WRAPPER in text
        text = text.replace("teacher.pt", "teacher.safetensors").replace(WRAPPER, f"{WRAPPER}{asked}")
        text = text.replace("num_classes: 4}\n    src_ckpt", f"num_classes: {size}}}\n    src_ckpt")
        model = timm_model("test_byobnet", num_classes=size)
        save_student(model, Path("teacher.safetensors"), "test_byobnet", classes=names)
        Path("tiny.yaml").write_text(text, encoding="utf-8")
        return made(read("tiny.yaml"), "kd")

    return make


EVEN = (0, 2, 4, 6)
ORDER, OTHERS = "needs the same class order", "needs the same classes"


@pytest.mark.parametrize(
    ("classes", "names", "reason"),
    [
        (EVEN, "0246", ""),
        (EVEN, "0264", ORDER),
        (EVEN, "0247", OTHERS),
        (EVEN, "1357", OTHERS),
        # the training set says that the classes are the teacher's: names with nothing in common may be spelt otherwise
        (None, "0123", ""),
        (None, "wxyz", ""),
        (None, "0132", ORDER),
        (None, "0129", OTHERS),
        (None, "", ""),
    ],
)
def test_names_of_both_sides_decide_then_the_training_set(kd, classes, names, reason):
    assert different_classes(kd(classes, list(names) or None)) == reason


@pytest.mark.parametrize(("size", "reason"), [(4, None), (5, OTHERS)])
def test_without_names_only_another_number_of_classes_shows_it(kd, size, reason):
    assert different_classes(kd(EVEN, None, size=size)) == reason


@pytest.mark.parametrize(
    ("asked", "names", "reason"),
    [
        ("class_map: {'0': 0, '2': 1, '4': 2, '6': 3}", "wxyz", ""),
        ("class_map: {'0': 'w', '2': 'x', '4': 'y', '6': 'z'}", "wxyz", ""),
        ("class_map: {'0': 1, '2': 0, '4': 2, '6': 3}", "", ORDER),
        ("class_map: {'0': 0, '2': 1, '4': 2}", "0246", OTHERS),
        ("class_map: 'names', teacher_classes: ['6', '4', '2', '0']", "", ORDER),
        ("class_map: 'names', teacher_classes: ['0', '2', '4', '6']", "", ""),
        ("class_map: 'names'", "wxyz", OTHERS),
        ("class_map: null", "0246", ""),
        ("teacher_classes: ['0', '2', '4', '6']", "", ""),
        ("teacher_classes: ['0', '2', '6', '4']", "0246", ORDER),
    ],
)
def test_what_the_wrapper_says_goes_first(kd, asked, names, reason):
    assert different_classes(kd(EVEN, list(names) or None, f", {asked}")) == reason


def test_weights_from_an_address_name_no_classes(kd, monkeypatch):
    config = kd(EVEN, list("0246"))
    asked = []

    def read(path, where):
        asked.append(path)
        return WeightFile({}, None)

    monkeypatch.setattr("gkd_plugin.compare.obstacles.read_weights", read)
    config.tree["models"]["teacher_model"]["src_ckpt"] = "http://127.0.0.1:1/teacher.pt"
    assert different_classes(config) is None
    assert asked == ["http://127.0.0.1:1/teacher.pt"]


def test_a_checkpoint_written_anew_is_read_anew(kd):
    assert different_classes(kd(EVEN, list("0246"))) == ""
    assert different_classes(kd(EVEN, list("0264"))) == ORDER


def test_what_nothing_shows_is_warned_of(kd, caplog, monkeypatch):
    kd(EVEN, None)
    monkeypatch.setattr("gkd_plugin.compare.compare.run_grid", lambda cells, *given: [Result(cells[0], "finished")])
    compare(Comparison(Path("tiny.yaml"), ["kd"], seeds=[0], output=Path("grid")))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("kd: nothing shows whether the student's classes are the teacher's")
