from pathlib import Path

import pytest

from gkd_plugin.compare.setting import (
    Setting,
    apply_setting,
    is_incremental,
    keep_all_samples,
    shares_classes,
    training_memory,
    training_shots,
)
from gkd_plugin.config.yaml_nodes import compose, compose_value
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError
from tests.compare.fakes import CONFIG

CONFIGS = Path(__file__).parents[2] / "configs" / "digits"
NO_SUBSET = """
datasets: {{d/train: !import_call {{key: 'tests.fakes.TinyImages', init: {{kwargs: {{}}}}}}}}
models:
  teacher_model: {{key: 'timm_model', kwargs: {{num_classes: {0}}}}}
  student_model: {{key: 'timm_model', kwargs: {{num_classes: {1}}}}}
"""


def subsets(root):
    return {name: tag.value["init"]["kwargs"] for name, tag in to_plain(root)["datasets"].items()}


def test_names_and_titles():
    assert (Setting().name, Setting().title) == ("as_configured", "as configured")
    assert (Setting(12.5).name, Setting(12.5).title) == ("overlap12.5", "overlap 12.5 %")
    assert (Setting(ways=5, shots=1).name, Setting(ways=5, shots=1).title) == ("ways5_shots1", "5-way 1-shot")
    assert (Setting(memory=0).name, Setting(memory=0).title) == ("memory0", "memory 0")


def test_every_subset_of_the_student_gets_the_overlap_however_it_was_written():
    root = compose_value(CONFIG, "test")
    apply_setting(root, Setting(75))
    for kwargs in subsets(root).values():
        assert kwargs["overlap"] == 0.75
        assert "shift" not in kwargs


def test_subsets_of_the_teacher_stay():
    root = compose_value(CONFIG.replace("role: 'student'", "role: 'teacher'", 1), "test")
    apply_setting(root, Setting(50))
    assert [kwargs["overlap"] for kwargs in subsets(root).values()] == [0.0, 0.5, 0.5]


def test_an_anchor_is_set_once():
    text = CONFIG.replace("test: !import_call", "unused: &x !import_call", 1) + "\n"
    root = compose_value(text.replace("models:", "  test: *x\nmodels:", 1), "test")
    apply_setting(root, Setting(25))
    assert {kwargs["overlap"] for kwargs in subsets(root).values()} == {0.25}


@pytest.mark.parametrize(
    ("text", "overlap", "message"),
    [
        (NO_SUBSET.format(4, 4), 50, r"--overlap: no data set is a gkd_plugin\.data\.overlap_subset with role 'stud"),
        (CONFIG.replace("num_classes: 4", "num_classes: 5"), 25, "--overlap 25: overlap=0.25 of 5 classes is not a wh"),
    ],
)
def test_an_overlap_that_cannot_be(text, overlap, message):
    with pytest.raises(ConfigError, match=message):
        apply_setting(compose_value(text, "test"), Setting(overlap))


@pytest.mark.parametrize(("overlap", "shared"), [(0, False), (75, False), (100, True)])
def test_subsets_show_whether_the_classes_are_shared(overlap, shared):
    root = compose_value(CONFIG, "test")
    apply_setting(root, Setting(overlap))
    assert shares_classes(root) is shared


@pytest.mark.parametrize(
    ("teacher", "student", "shared"),
    [(4, 4, None), (5, 4, False), ("null", "null", None), (4, "null", False), ("null", 4, False)],
)
def test_without_subsets_only_another_number_of_classes_shows_it(teacher, student, shared):
    assert shares_classes(compose_value(NO_SUBSET.format(teacher, student), "test")) is shared


# --- few-shot tasks and incremental learning, in the digits' configurations ------------------------------------------


@pytest.fixture
def few_shot():
    return compose(CONFIGS / "digits_fewshot_refilled.yaml")


@pytest.fixture
def incremental():
    return compose(CONFIGS / "digits_incremental_refilled.yaml")


def test_every_task_is_set_and_a_zero_stays(few_shot):
    apply_setting(few_shot, Setting(ways=3, shots=2), task=7)
    plain = subsets(few_shot)
    assert [(kwargs["ways"], kwargs["shots"], kwargs["task"]) for kwargs in plain.values()] == [
        (3, 2, 7),
        (3, 2, 7),
        (3, 0, 7),
    ]
    assert to_plain(few_shot)["models"]["student_model"]["kwargs"]["num_classes"] == 3
    assert to_plain(few_shot)["models"]["teacher_model"]["kwargs"]["num_classes"] == 5
    assert training_shots(few_shot) == 2


def test_what_is_not_given_stays(few_shot):
    before = to_plain(few_shot)
    apply_setting(few_shot, Setting())
    assert to_plain(few_shot) == before
    apply_setting(few_shot, Setting(), task=0)
    assert to_plain(few_shot) == before


def test_classes_of_a_few_shot_task_are_not_the_teachers(few_shot):
    """Although there are as many."""
    assert shares_classes(few_shot) is False
    assert not is_incremental(few_shot)


def test_the_memory_of_training_sets_alone_is_set(incremental):
    assert (training_memory(incremental), is_incremental(incremental)) == (5, True)
    apply_setting(incremental, Setting(memory=20))
    assert [kwargs["memory"] for kwargs in subsets(incremental).values()] == [20, None, None]
    assert training_memory(incremental) == 20
    keep_all_samples(incremental)
    assert training_memory(incremental) is None


def test_without_a_memory_batches_are_as_large_as_before(incremental):
    """10 classes × 5 samples; only 5 classes have samples."""
    apply_setting(incremental, Setting(memory=0))
    for stage in ("stage1", "stage2"):
        kwargs = to_plain(incremental)["train"][stage]["train_data_loader"]["batch_sampler"]["kwargs"]
        assert kwargs == {"classes_per_batch": 5, "samples_per_class": 10}


@pytest.mark.parametrize(
    ("ways", "classes", "samples"),
    [(3, 3, 8), (8, 8, 5)],  # as large a batch as before of fewer classes; as many samples of more
)
def test_batches_hold_all_classes_of_the_task(few_shot, ways, classes, samples):
    """5 classes × 5 samples."""
    apply_setting(few_shot, Setting(ways=ways, shots=1))
    for stage in ("stage1", "stage2"):
        kwargs = to_plain(few_shot)["train"][stage]["train_data_loader"]["batch_sampler"]["kwargs"]
        assert kwargs == {"classes_per_batch": classes, "samples_per_class": samples, "num_batches": 1}


def test_batches_of_some_classes_stay_so():
    text = (CONFIGS / "digits_fewshot_refilled.yaml").read_text("utf-8")
    few_shot = compose_value(text.replace("classes_per_batch: 5", "classes_per_batch: 2"), "test")
    apply_setting(few_shot, Setting(ways=8, shots=1))
    kwargs = to_plain(few_shot)["train"]["stage1"]["train_data_loader"]["batch_sampler"]["kwargs"]
    assert kwargs == {"classes_per_batch": 2, "samples_per_class": 5, "num_batches": 1}


@pytest.mark.parametrize(
    ("setting", "task", "message"),
    [
        (Setting(ways=3), None, r"--ways: no data set is a gkd_plugin\.data\.few_shot_task"),
        (Setting(shots=1), 2, r"--shots, --tasks: no data set is"),
        (Setting(memory=0), None, r"--memory: no data set is a gkd_plugin\.data\.incremental_subset with a memory"),
    ],
)
def test_settings_that_the_configuration_does_not_have(setting, task, message):
    with pytest.raises(ConfigError, match=message):
        apply_setting(compose_value(CONFIG, "test"), setting, task)
