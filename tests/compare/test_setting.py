"""What the options set, and what a method cannot serve."""

import copy
import logging
from pathlib import Path

import pytest

from gkd_plugin.compare.cell import cell_config
from gkd_plugin.compare.compare import Comparison, compare
from gkd_plugin.compare.grid import Result
from gkd_plugin.compare.method import load_method, method_names
from gkd_plugin.compare.setting import (
    Setting,
    apply_setting,
    different_classes,
    is_incremental,
    keep_all_samples,
    obstacle,
    untrained_student,
)
from gkd_plugin.config.config import load_config
from gkd_plugin.config.stages import stages_of
from gkd_plugin.config.tree import read
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.weights import WeightFile, save_student
from tests.compare.fakes import CONFIG, write_config, write_few_shot, write_incremental
from tests.config.samples import parse

CONFIGS = Path(__file__).parents[2] / "configs" / "digits"
NO_SUBSET = "datasets: {d/train: !import_call {key: 'tests.fakes.TinyImages', init: {kwargs: {}}}}"


def subsets(tree):
    return {name: tag.value["init"]["kwargs"] for name, tag in tree["datasets"].items()}


@pytest.mark.parametrize(
    ("setting", "name", "title"),
    [
        (Setting(), "as_configured", "as configured"),
        (Setting(12.5), "overlap12.5", "overlap 12.5 %"),
        (Setting(ways=5, shots=1), "ways5_shots1", "5-way 1-shot"),
        (Setting(memory=0), "memory0", "memory 0"),
    ],
)
def test_names_and_titles(setting, name, title):
    assert (setting.name, setting.title) == (name, title)


# --- the overlap -----------------------------------------------------------------------------------------------------


def test_every_subset_of_the_student_gets_the_overlap_however_it_was_written():
    tree = parse(CONFIG.replace("role: 'student'", "role: 'teacher'", 1), "test")
    apply_setting(tree, Setting(75))
    teachers, *students = subsets(tree).values()
    assert teachers["overlap"] == 0.0
    for kwargs in students:
        assert kwargs["overlap"] == 0.75
        assert "shift" not in kwargs


def test_an_anchor_is_set_once():
    text = CONFIG.replace("test: !import_call", "unused: &x !import_call", 1) + "\n"
    tree = parse(text.replace("models:", "  test: *x\nmodels:", 1), "test")
    apply_setting(tree, Setting(25))
    assert {kwargs["overlap"] for kwargs in subsets(tree).values()} == {0.25}


# --- few-shot tasks and incremental learning, in the digits' configurations ------------------------------------------


@pytest.fixture
def few_shot():
    return read(CONFIGS / "digits_fewshot_refilled.yaml")


@pytest.fixture
def incremental():
    return read(CONFIGS / "digits_incremental_refilled.yaml")


def test_every_task_is_set_and_a_zero_stays(few_shot):
    apply_setting(few_shot, Setting(ways=3, shots=2), task=7)
    found = [(kwargs["ways"], kwargs["shots"], kwargs["task"]) for kwargs in subsets(few_shot).values()]
    assert found == [(3, 2, 7), (3, 2, 7), (3, 0, 7)]
    assert few_shot["models"]["student_model"]["kwargs"]["num_classes"] == 3
    assert few_shot["models"]["teacher_model"]["kwargs"]["num_classes"] == 5


def test_what_is_not_given_stays(few_shot):
    before = copy.deepcopy(few_shot)
    apply_setting(few_shot, Setting())
    assert few_shot == before
    apply_setting(few_shot, Setting(), task=0)
    assert few_shot == before


def test_the_memory_of_training_sets_alone_is_set(incremental, few_shot):
    assert (is_incremental(incremental), is_incremental(few_shot)) == (True, False)
    apply_setting(incremental, Setting(memory=20))
    assert [kwargs["memory"] for kwargs in subsets(incremental).values()] == [20, None, None]
    keep_all_samples(incremental)
    assert [kwargs["memory"] for kwargs in subsets(incremental).values()] == [None] * 3


def batches(tree):
    """Keywords of the batch samplers, one for each stage."""
    return [stage.loader["batch_sampler"]["kwargs"] for stage in stages_of(tree)]


def test_without_a_memory_batches_are_as_large_as_before(incremental):
    """10 classes × 5 samples; only 5 classes have samples."""
    apply_setting(incremental, Setting(memory=0))
    assert batches(incremental) == [{"classes_per_batch": 5, "samples_per_class": 10}] * 2


@pytest.mark.parametrize(
    ("given", "ways", "expected"),
    [
        ((5, 5), 3, (3, 8)),  # as large a batch as before, of fewer classes
        ((5, 5), 8, (8, 5)),  # all classes still, as many samples of each
        ((2, 5), 8, (2, 5)),  # batches of some classes stay so
    ],
)
def test_batches_hold_no_more_classes_than_the_task(few_shot, given, ways, expected):
    for kwargs in batches(few_shot):
        assert (kwargs["classes_per_batch"], kwargs["samples_per_class"]) == (5, 5)
        kwargs["classes_per_batch"], kwargs["samples_per_class"] = given
    apply_setting(few_shot, Setting(ways=ways, shots=1))
    for kwargs in batches(few_shot):
        assert (kwargs["classes_per_batch"], kwargs["samples_per_class"], kwargs["num_batches"]) == (*expected, 1)


@pytest.mark.parametrize(
    ("text", "setting", "task", "message"),
    [
        (NO_SUBSET, Setting(50), None, r"--overlap: no data set is a gkd_plugin\.data\.overlap_subset with role 'stud"),
        (CONFIG.replace("num_classes: 4", "num_classes: 5"), Setting(25), None, "--overlap 25: overlap=0.25 of 5 clas"),
        (CONFIG, Setting(ways=3), None, r"--ways: no data set is a gkd_plugin\.data\.few_shot_task"),
        (CONFIG, Setting(shots=1), 2, r"--shots, --tasks: no data set is"),
        (
            CONFIG,
            Setting(memory=0),
            None,
            r"--memory: no data set is a gkd_plugin\.data\.incremental_subset with a mem",
        ),
    ],
)
def test_settings_that_cannot_be(text, setting, task, message):
    with pytest.raises(ConfigError, match=message):
        apply_setting(parse(text, "test"), setting, task)


# --- what a method cannot serve --------------------------------------------------------------------------------------

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
    tree = load_config(CONFIGS / "digits_fewshot_refilled.yaml", ["models.teacher_model.src_ckpt=null"]).tree
    for name in ("refilled", "refilled-joint"):
        assert obstacle(load_method(name), made(tree, name, Setting(shots=1))) == ""


@pytest.mark.parametrize(
    ("changes", "is_trained"),
    [
        ({}, False),
        ({"src_ckpt": None}, False),
        ({"src_ckpt": "teacher.pt", "src_ckpt_classifier": "new"}, True),
        ({"kwargs": {"pretrained": True}}, True),
        ({"kwargs": {"pretrained": False}}, False),
        ({"kwargs": {"checkpoint_path": "x.pth"}}, True),
    ],
)
def test_methods_about_trained_weights_need_some(changes, is_trained):
    tree = {"models": {"student_model": {"key": "timm_model", **changes}}}
    reasons = {name: untrained_student(load_method(name), tree) for name in method_names()}
    untrained = {"scratch": "is the same as ce: random weights", "student-ncm": "needs a student with trained weights"}
    assert {name: reason for name, reason in reasons.items() if reason} == ({} if is_trained else untrained)


# --- the teacher's own classes ---------------------------------------------------------------------------------------


def _subset(name, split, classes):
    """Of the digits: the classes given, or the teacher's own, the first four."""
    key = "class_subset" if classes else "overlap_subset"
    kwargs = f"classes: {list(classes)}" if classes else "role: 'student', num_classes: 4, overlap: 1.0"
    digits = (
        f"!import_call {{key: 'gkd_plugin.data.digits', init: {{kwargs: {{split: '{split}', size: 32, rgb: True}}}}}}"
    )
    return (
        f"  {name}: !import_call {{key: 'gkd_plugin.data.{key}', init: {{kwargs: {{{kwargs}, dataset: {digits}}}}}}}\n"
    )


WRAPPER = "auxiliary_model_wrapper: {key: 'refilled_teacher', kwargs: {preprocessing: 'data'"


@pytest.fixture
def kd(tmp_path, monkeypatch):
    """A cell of digits for a teacher whose checkpoint names its classes (with a count alone: none)."""
    monkeypatch.chdir(tmp_path)

    def make(classes, names, asked="", size=4):
        sets = "".join(_subset(*split, classes) for split in [("train", "train"), ("val", "test"), ("test", "test")])
        text = f"dependencies:\n  - name: 'gkd_plugin'\ndatasets:\n{sets}{CONFIG[CONFIG.index('models:') :]}"
        assert WRAPPER in text
        text = text.replace("teacher.pt", "teacher.safetensors").replace(WRAPPER, f"{WRAPPER}{asked}")
        text = text.replace("num_classes: 4}\n    src_ckpt", f"num_classes: {size}}}\n    src_ckpt")
        model = timm_model("test_byobnet", num_classes=size)
        save_student(model, Path("teacher.safetensors"), {"classes": list(names) or None})
        Path("tiny.yaml").write_text(text, encoding="utf-8")
        return made(read("tiny.yaml"), "kd")

    return make


EVEN = (0, 2, 4, 6)
ORDER, OTHERS = "needs the same class order", "needs the same classes"


@pytest.mark.parametrize(
    ("classes", "names", "asked", "reason"),
    [
        (EVEN, "0246", "", ""),
        (EVEN, "0264", "", ORDER),
        (EVEN, "1357", "", OTHERS),
        (EVEN, "", "", None),
        # the training set says that the classes are the teacher's: names with nothing in common may be spelt otherwise
        (None, "0123", "", ""),
        (None, "wxyz", "", ""),
        (None, "0132", "", ORDER),
        (None, "", "", ""),
        # what the wrapper says goes first
        (EVEN, "wxyz", "class_map: {'0': 'w', '2': 'x', '4': 'y', '6': 'z'}", ""),
        (EVEN, "", "class_map: {'0': 1, '2': 0, '4': 2, '6': 3}", ORDER),
        (EVEN, "wxyz", "class_map: 'names'", OTHERS),
        (EVEN, "0246", "class_map: null", ""),
        (EVEN, "0246", "teacher_classes: ['0', '2', '6', '4']", ORDER),
    ],
)
def test_the_wrapper_then_names_of_both_sides_then_the_training_set_decide(kd, classes, names, asked, reason):
    assert different_classes(kd(classes, names, f", {asked}" if asked else "")) == reason


def test_without_names_another_number_of_classes_shows_it(kd):
    assert different_classes(kd(EVEN, "", size=5)) == OTHERS


def test_weights_from_an_address_name_no_classes(kd, monkeypatch):
    config = kd(EVEN, "0246")
    asked = []
    monkeypatch.setattr(
        "gkd_plugin.compare.setting.read_weights", lambda path, where: asked.append(path) or WeightFile({})
    )
    config.tree["models"]["teacher_model"]["src_ckpt"] = "http://127.0.0.1:1/teacher.pt"
    assert different_classes(config) is None
    assert asked == ["http://127.0.0.1:1/teacher.pt"]


def test_a_checkpoint_written_anew_is_read_anew(kd):
    assert different_classes(kd(EVEN, "0246")) == ""
    assert different_classes(kd(EVEN, "0264")) == ORDER


def test_what_nothing_shows_is_warned_of(kd, caplog, monkeypatch):
    kd(EVEN, "")
    monkeypatch.setattr("gkd_plugin.compare.compare.run_grid", lambda cells, *given: [Result(cells[0], "finished")])
    compare(Comparison(Path("tiny.yaml"), ["kd"], seeds=[0], output=Path("grid")))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("kd: nothing shows whether the student's classes are the teacher's")
