import copy
from pathlib import Path

import pytest
import torch

from gkd_plugin.compare.cell import cell_config
from gkd_plugin.compare.method import load_method, method_names
from gkd_plugin.compare.setting import Setting, apply_setting, cannot_be_made, different_classes, obstacle
from gkd_plugin.config.config import RunConfig, load_config
from gkd_plugin.config.stages import stages_of
from gkd_plugin.config.tree import read
from gkd_plugin.runner.weights import WeightFile, save_student
from tests.compare.fakes import FEW_SHOT, INCREMENTAL, TINY
from tests.config.samples import parse
from tests.runner.fakes import call, refused

CONFIGS = Path(__file__).parents[2] / "configs" / "digits"
NO_SUBSET = parse("datasets: {d/train: !import_call {key: 'tests.fakes.TinyImages', init: {kwargs: {}}}}", "test")


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


def test_every_subset_of_the_student_gets_the_overlap_however_it_was_written():
    tree = copy.deepcopy(TINY)
    subsets(tree)["train"]["role"] = "teacher"
    apply_setting(tree, Setting(75))
    teachers, *students = subsets(tree).values()
    assert teachers["overlap"] == 0.0
    for kwargs in students:
        assert kwargs["overlap"] == 0.75
        assert "shift" not in kwargs


@pytest.fixture
def few_shot():
    return read(CONFIGS / "digits_fewshot_refilled.yaml")


def test_every_task_is_set_and_a_zero_stays(few_shot):
    apply_setting(few_shot, Setting(ways=3, shots=2), task=7)
    found = [tuple(kwargs[key] for key in ("ways", "shots", "task")) for kwargs in subsets(few_shot).values()]
    assert found == [(3, 2, 7), (3, 2, 7), (3, 0, 7)]
    assert few_shot["models"]["student_model"]["kwargs"]["num_classes"] == 3
    assert few_shot["models"]["teacher_model"]["kwargs"]["num_classes"] == 5


def batches(tree):
    """Keywords of the batch samplers, one for each stage."""
    return [stage.loader["batch_sampler"]["kwargs"] for stage in stages_of(tree)]


@pytest.mark.parametrize(("memory", "batch"), [(20, (10, 5)), (0, (5, 10))])
def test_the_memory_of_training_sets_alone_is_set(memory, batch):
    """Without a memory only 5 of 10 classes have samples: batches are as large as before."""
    tree = read(CONFIGS / "digits_incremental_refilled.yaml")
    apply_setting(tree, Setting(memory=memory))
    assert [kwargs["memory"] for kwargs in subsets(tree).values()] == [memory, None, None]
    assert [tuple(kwargs.values()) for kwargs in batches(tree)] == [batch] * 2


@pytest.mark.parametrize(
    ("given", "ways", "expected"),
    [
        ((5, 5), 3, (3, 8)),  # as large a batch as before, of fewer classes
        ((5, 5), 8, (8, 5)),  # all classes still, as many samples of each
        ((2, 5), 8, (2, 5)),  # batches of some classes stay so
    ],
)
def test_batches_hold_no_more_classes_than_the_task(few_shot, given, ways, expected):
    for kwargs in batches(few_shot):  # of 5 classes
        kwargs["classes_per_batch"], kwargs["samples_per_class"] = given
    apply_setting(few_shot, Setting(ways=ways, shots=1))
    assert [tuple(kwargs.values()) for kwargs in batches(few_shot)] == [(*expected, 1)] * 2  # 1: num_batches


@pytest.mark.parametrize(
    ("tree", "setting", "task", "message"),
    [
        (NO_SUBSET, Setting(50), None, r"--overlap: .* gkd_plugin\.data\.overlap_subset with role 'student'"),
        (TINY, Setting(ways=3), None, r"--ways: .* gkd_plugin\.data\.few_shot_task"),
        (TINY, Setting(shots=1), 2, "--shots, --tasks: "),
        (TINY, Setting(memory=0), None, r"--memory: .* gkd_plugin\.data\.incremental_subset with a memory"),
    ],
)
def test_settings_that_cannot_be(tree, setting, task, message):
    refused(message, apply_setting, copy.deepcopy(tree), setting, task)


REFILLED = [name for name in method_names() if name.startswith("refilled")]
NO_OLD = dict.fromkeys(("lwf", "joint-training"), "needs old and new classes")
SAME = dict.fromkeys(("kd", "kd-ls", "dist", "srd"), "needs the same classes")
PAIRED = {*REFILLED, "config"} - {"refilled-stage2-only"}
NO_PAIRS = dict.fromkeys(PAIRED, "needs two shots or ClassBalancedBatchSampler")
NO_SAMPLE = dict.fromkeys(
    [*REFILLED, "config", "probe-kd", "teacher-ncm", "student-ncm"], "needs a sample of each class"
)


def made(tree, method, setting):
    return cell_config(tree, load_method(method), setting, Path("cell.yaml"))


@pytest.mark.parametrize(
    ("tree", "setting", "in_the_way"),
    [
        (TINY, Setting(50.0), SAME | NO_OLD),
        (TINY, Setting(100.0), NO_OLD),
        (FEW_SHOT, Setting(shots=2), SAME | NO_OLD),
        (FEW_SHOT, Setting(shots=1), SAME | NO_OLD | NO_PAIRS),
        (INCREMENTAL, Setting(memory=1), SAME),
        (INCREMENTAL, Setting(memory=0), SAME | NO_SAMPLE),
    ],
)
def test_what_is_in_the_way(tree, setting, in_the_way, written):
    tree = written(tree=tree)
    reasons = {name: obstacle(load_method(name), made(tree, name, setting)) for name in method_names()}
    assert {name: reason for name, reason in reasons.items() if reason} == in_the_way


def test_images_without_labels_are_in_the_way_of_crd_alone(written):
    tree = written()
    data, more = tree["datasets"], call("tests.fakes.TinyImages", size=32)
    data["train"] = call("gkd_plugin.data.with_unlabelled", labelled=data["train"], unlabelled=more)
    reasons = {name: obstacle(load_method(name), made(tree, name, Setting())) for name in ("crd", "cckd")}
    assert reasons == {"crd": "needs a label of each image", "cckd": ""}


def test_a_teacher_that_a_method_trains_has_the_students_classes(written):
    """Its weights are not there yet."""
    tree = written()
    Path("mine.yaml").write_text("{teacher: finetune, classes: same, stages: [{}]}", encoding="utf-8")
    trained = load_method("finetune"), {**tree["models"]["teacher_model"], "src_ckpt": "grid/student.safetensors"}
    method = load_method("mine.yaml")
    assert obstacle(method, cell_config(tree, method, Setting(), Path("cell.yaml"), trained=trained)) == ""


def test_batches_with_several_views_of_an_image_serve_one_shot():
    tree = load_config(CONFIGS / "digits_fewshot_refilled.yaml", ["models.teacher_model.src_ckpt=null"]).tree
    assert obstacle(load_method("refilled"), made(tree, "refilled", Setting(shots=1))) == ""


@pytest.mark.parametrize(
    ("changes", "is_trained"),
    [
        ({}, False),
        ({"src_ckpt": "teacher.pt"}, True),
        ({"kwargs": {"pretrained": True}}, True),
        ({"kwargs": {"pretrained": False}}, False),
        ({"kwargs": {"checkpoint_path": "x.pth"}}, True),
    ],
)
def test_methods_about_trained_weights_need_some(changes, is_trained):
    tree = {"models": {"student_model": {"key": "timm_model", **changes}}, "train": {"stage1": {}, "stage2": {}}}
    reasons = {name: cannot_be_made(load_method(name), tree) for name in method_names()}
    untrained = {"scratch": "is the same as ce: random weights", "student-ncm": "needs a student with trained weights"}
    assert {name: reason for name, reason in reasons.items() if reason} == ({} if is_trained else untrained)


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A configuration of digits for a teacher whose checkpoint names its classes, or none."""
    monkeypatch.chdir(tmp_path)

    def make(classes, names, asked="", size=4):
        key = "class_subset" if classes else "overlap_subset"
        kwargs = f"classes: {list(classes)}" if classes else "role: 'student', num_classes: 4, overlap: 1.0"
        images = "!import_call {key: 'gkd_plugin.data.digits', init: {kwargs: {split: 'train'}}}"
        text = f"""
datasets: {{train: !import_call {{key: 'gkd_plugin.data.{key}', init: {{kwargs: {{{kwargs}, dataset: {images}}}}}}}}}
models:
  teacher_model: {{kwargs: {{num_classes: {size}}}, src_ckpt: 'teacher.safetensors'}}
  student_model: {{kwargs: {{num_classes: 4}}}}
train:
  train_data_loader: {{dataset_id: 'train'}}
  teacher: {{auxiliary_model_wrapper: {{kwargs: {{{asked}}}}}}}
"""
        save_student(torch.nn.Linear(1, 1), Path("teacher.safetensors"), {"classes": list(names) or None})
        return RunConfig(Path("a.yaml"), parse(text, "test"))

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
def test_the_wrapper_then_names_of_both_sides_then_the_training_set_decide(digits, classes, names, asked, reason):
    assert different_classes(digits(classes, names, asked)) == reason


def test_weights_from_an_address_name_no_classes(digits, monkeypatch):
    config = digits(EVEN, "0246")
    asked = []
    fetch = "gkd_plugin.compare.setting.read_weights"
    monkeypatch.setattr(fetch, lambda path, where: asked.append(path) or WeightFile({}))
    config.tree["models"]["teacher_model"]["src_ckpt"] = "http://127.0.0.1:1/teacher.pt"
    assert different_classes(config) is None
    assert asked == ["http://127.0.0.1:1/teacher.pt"]


def test_a_checkpoint_written_anew_is_read_anew_and_without_names_the_number_of_classes_shows_it(digits):
    assert different_classes(digits(EVEN, "0246")) == ""
    assert different_classes(digits(EVEN, "0264")) == ORDER
    assert different_classes(digits(EVEN, "", size=5)) == OTHERS


def test_what_nothing_shows_is_warned_of(digits, caplog):
    assert obstacle(load_method("kd"), digits(EVEN, "")) == ""
    (line,) = caplog.messages
    assert line.startswith("kd: nothing shows whether the student's classes are the teacher's")
