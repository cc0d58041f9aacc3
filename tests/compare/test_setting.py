import copy
from pathlib import Path

import pytest

from gkd_plugin.compare.setting import (
    Setting,
    apply_setting,
    is_few_shot,
    is_incremental,
    keep_all_samples,
    training_memory,
    training_shots,
)
from gkd_plugin.config.tree import parse, read
from gkd_plugin.errors import ConfigError
from tests.compare.fakes import CONFIG

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


def test_every_subset_of_the_student_gets_the_overlap_however_it_was_written():
    tree = parse(CONFIG, "test")
    apply_setting(tree, Setting(75))
    for kwargs in subsets(tree).values():
        assert kwargs["overlap"] == 0.75
        assert "shift" not in kwargs


def test_subsets_of_the_teacher_stay():
    tree = parse(CONFIG.replace("role: 'student'", "role: 'teacher'", 1), "test")
    apply_setting(tree, Setting(50))
    assert [kwargs["overlap"] for kwargs in subsets(tree).values()] == [0.0, 0.5, 0.5]


def test_an_anchor_is_set_once():
    text = CONFIG.replace("test: !import_call", "unused: &x !import_call", 1) + "\n"
    tree = parse(text.replace("models:", "  test: *x\nmodels:", 1), "test")
    apply_setting(tree, Setting(25))
    assert {kwargs["overlap"] for kwargs in subsets(tree).values()} == {0.25}


@pytest.mark.parametrize(
    ("text", "overlap", "message"),
    [
        (NO_SUBSET, 50, r"--overlap: no data set is a gkd_plugin\.data\.overlap_subset with role 'stud"),
        (CONFIG.replace("num_classes: 4", "num_classes: 5"), 25, "--overlap 25: overlap=0.25 of 5 classes is not a wh"),
    ],
)
def test_an_overlap_that_cannot_be(text, overlap, message):
    with pytest.raises(ConfigError, match=message):
        apply_setting(parse(text, "test"), Setting(overlap))


# --- few-shot tasks and incremental learning, in the digits' configurations ------------------------------------------


@pytest.fixture
def few_shot():
    return read(CONFIGS / "digits_fewshot_refilled.yaml")


@pytest.fixture
def incremental():
    return read(CONFIGS / "digits_incremental_refilled.yaml")


def test_every_task_is_set_and_a_zero_stays(few_shot):
    apply_setting(few_shot, Setting(ways=3, shots=2), task=7)
    plain = subsets(few_shot)
    assert [(kwargs["ways"], kwargs["shots"], kwargs["task"]) for kwargs in plain.values()] == [
        (3, 2, 7),
        (3, 2, 7),
        (3, 0, 7),
    ]
    assert few_shot["models"]["student_model"]["kwargs"]["num_classes"] == 3
    assert few_shot["models"]["teacher_model"]["kwargs"]["num_classes"] == 5
    assert (training_shots(few_shot), is_incremental(few_shot), is_few_shot(few_shot)) == (2, False, True)


def test_what_is_not_given_stays(few_shot):
    before = copy.deepcopy(few_shot)
    apply_setting(few_shot, Setting())
    assert few_shot == before
    apply_setting(few_shot, Setting(), task=0)
    assert few_shot == before


def test_the_memory_of_training_sets_alone_is_set(incremental):
    assert (training_memory(incremental), is_incremental(incremental), is_few_shot(incremental)) == (5, True, False)
    apply_setting(incremental, Setting(memory=20))
    assert [kwargs["memory"] for kwargs in subsets(incremental).values()] == [20, None, None]
    assert training_memory(incremental) == 20
    keep_all_samples(incremental)
    assert training_memory(incremental) is None


def batches(tree):
    """Keywords of the batch sampler, which both stages have alike."""
    first, second = (
        tree["train"][name]["train_data_loader"]["batch_sampler"]["kwargs"] for name in ("stage1", "stage2")
    )
    assert first == second
    return first


def test_without_a_memory_batches_are_as_large_as_before(incremental):
    """10 classes × 5 samples; only 5 classes have samples."""
    apply_setting(incremental, Setting(memory=0))
    assert batches(incremental) == {"classes_per_batch": 5, "samples_per_class": 10}


@pytest.mark.parametrize(
    ("given", "ways", "expected"),
    [
        ((5, 5), 3, (3, 8)),  # as large a batch as before, of fewer classes
        ((5, 5), 8, (8, 5)),  # all classes still, as many samples of each
        ((2, 5), 8, (2, 5)),  # batches of some classes stay so
    ],
)
def test_batches_hold_no_more_classes_than_the_task(few_shot, given, ways, expected):
    for stage in ("stage1", "stage2"):
        kwargs = few_shot["train"][stage]["train_data_loader"]["batch_sampler"]["kwargs"]
        assert (kwargs["classes_per_batch"], kwargs["samples_per_class"]) == (5, 5)
        kwargs["classes_per_batch"], kwargs["samples_per_class"] = given
    apply_setting(few_shot, Setting(ways=ways, shots=1))
    assert batches(few_shot) == {"classes_per_batch": expected[0], "samples_per_class": expected[1], "num_batches": 1}


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
        apply_setting(parse(CONFIG, "test"), setting, task)
