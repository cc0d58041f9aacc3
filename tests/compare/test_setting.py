import pytest

from gkd_plugin.compare.class_space import ClassSpace, apply_overlap, shares_classes
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.yaml_nodes import compose_value
from gkd_plugin.runner.yaml_plain import to_plain
from tests.compare.fakes import CONFIG

NO_SUBSET = """
datasets: {{d/train: !import_call {{key: 'tests.fakes.TinyImages', init: {{kwargs: {{}}}}}}}}
models:
  teacher_model: {{key: 'timm_model', kwargs: {{num_classes: {0}}}}}
  student_model: {{key: 'timm_model', kwargs: {{num_classes: {1}}}}}
"""


def subsets(root):
    return {name: tag.value["init"]["kwargs"] for name, tag in to_plain(root)["datasets"].items()}


def test_names_and_titles():
    assert (ClassSpace().name, ClassSpace().title) == ("as_configured", "as configured")
    assert (ClassSpace(12.5).name, ClassSpace(12.5).title) == ("overlap12.5", "overlap 12.5 %")


def test_every_subset_of_the_student_gets_the_overlap_however_it_was_written():
    root = compose_value(CONFIG, "test")
    apply_overlap(root, 75)
    for kwargs in subsets(root).values():
        assert kwargs["overlap"] == 0.75
        assert "shift" not in kwargs


def test_subsets_of_the_teacher_stay():
    root = compose_value(CONFIG.replace("role: 'student'", "role: 'teacher'", 1), "test")
    apply_overlap(root, 50)
    assert [kwargs["overlap"] for kwargs in subsets(root).values()] == [0.0, 0.5, 0.5]


def test_an_anchor_is_set_once():
    text = CONFIG.replace("test: !import_call", "unused: &x !import_call", 1) + "\n"
    root = compose_value(text.replace("models:", "  test: *x\nmodels:", 1), "test")
    apply_overlap(root, 25)
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
        apply_overlap(compose_value(text, "test"), overlap)


@pytest.mark.parametrize(("overlap", "shared"), [(0, False), (75, False), (100, True)])
def test_subsets_show_whether_the_classes_are_shared(overlap, shared):
    root = compose_value(CONFIG, "test")
    apply_overlap(root, overlap)
    assert shares_classes(root) is shared


@pytest.mark.parametrize(("teacher", "student", "shared"), [(4, 4, True), (5, 4, False), ("null", "null", False)])
def test_without_subsets_the_number_of_classes_shows_it(teacher, student, shared):
    assert shares_classes(compose_value(NO_SUBSET.format(teacher, student), "test")) is shared
