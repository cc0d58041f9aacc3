from pathlib import Path

import pytest

import gkd_plugin
from gkd_plugin.compare.method import load_method, method_names
from gkd_plugin.errors import ConfigError

FOLDER = Path(gkd_plugin.__file__).parent / "compare" / "methods"


@pytest.mark.parametrize("name", method_names())
def test_shipped_methods_say_what_they_are(name):
    method = load_method(name)
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    assert text.startswith("# ")
    assert f"title: '{method.title}'" in text
    assert method.name == name


def test_titles_tell_the_methods_apart():
    titles = [load_method(name).title for name in method_names()]
    assert len(set(titles)) == len(titles) >= 14


def test_the_control_has_no_teacher():
    (stage,) = load_method("ce").stages
    assert (stage.takes_all, stage.has_teacher) == (True, False)
    assert not load_method("ce").has_teacher
    assert load_method("refilled").has_teacher


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("classes: 'same'\nstages:\n  - {like: 'embedding', student: {forward_hook: null}}\n")
    method = load_method(str(path))
    assert (method.name, method.title, method.classes) == ("mine", "mine", "same")
    assert (method.stages[0].like, method.stages[0].takes_all, method.stages[0].has_teacher) == (
        "embedding",
        False,
        True,
    )
    assert (method.stages[0].student, method.stages[0].criterion) == ({"forward_hook": None}, None)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="there is no method 'refiled'; did you mean 'refilled'"):
        load_method("refiled")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: 'x'", "stages: must be a list of stages"),
        ("stages: 'all'", "stages: must be a list of stages"),
        ("stages: [3]", r"stages\.0: must be a mapping, got 3"),
        ("stage: []", "stage: is not a key of a method; did you mean 'stages'"),
        ("stages: [{lik: 'embedding'}]", r"stages\.0\.lik: is not a key of a method; did you mean 'like'"),
        ("stages: [{like: 'embeding'}]", r"stages\.0\.like: 'embeding' given; did you mean 'embedding'"),
        ("stages: [{epochs: 3}]", r"stages\.0\.epochs: 3 given; 'all', or leave it out"),
        ("stages: [{}, {teacher: 3}]", r"stages\.1\.teacher: must be a mapping, got 3"),
        ("stages: [{train_data_loader: 5}]", r"stages\.0\.train_data_loader: must be a mapping, got 5"),
        ("stages: [{max_grad_norm: -2}]", r"stages\.0\.max_grad_norm: -2 given; must be a finite number above 0"),
        ("stages: [{criterion: 'refilled'}]", r"stages\.0\.criterion: must be a mapping, got 'refilled'"),
        ("{classes: 'sam', stages: [{}]}", "classes: 'sam' given; did you mean 'same'"),
        ("{student: 'techer', stages: [{}]}", "student: 'techer' given; did you mean 'teacher'"),
        ("{student: null, stages: [{}]}", "student: None given"),
        ("{of: 'student', stages: [{}]}", "of: says whose embedding a probe reads, and there is no probe"),
        ("{of: 'teacher', probe: 'ncm'}", "of: 'teacher' given; 'student', or leave it out for the teacher"),
        ("stages: [{teacher: {a: ['{student_embeding}']}}]", r"'\{student_embeding\}' in .*; did you mean"),
        ("stages: [{teacher: {a: '{student_embeding}.fc'}}]", r"'\{student_embeding\}' in '\{student_embeding\}\.fc'"),
        ("stages: [{teacher: {a: '{student_width}.fc'}}]", r"'\{student_width\}' in '\{student_width\}\.fc'"),
        ("probe: 'nc'", "probe: 'nc' given; did you mean 'ncm'"),
        ("{probe: 'ncm', stages: [{}]}", "probe: trains nothing; remove stages and student"),
        ("{memory: 5, stages: [{}]}", "memory: 5 given; null for all samples, or leave it out"),
        ("stages: [{lr_factor: .inf}]", r"stages\.0\.lr_factor: inf given; must be a finite number above 0"),
        ("stages: [{lr_factor: 0}]", r"stages\.0\.lr_factor: 0 given; must be a finite number above 0"),
        ("[]", "a config is a mapping"),
    ],
)
def test_files_that_do_not_describe_a_method(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{message}"):
        load_method(str(path))


def test_a_file_that_is_missing():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_method("nowhere.yaml")


def test_what_trains_nothing_and_what_starts_from_the_teacher():
    assert (load_method("teacher-ncm").probe, load_method("teacher-ncm").stages) == ("ncm", ())
    assert load_method("teacher-logreg").probe == "logistic_regression"
    assert [load_method(name).starts_from_teacher for name in ("finetune", "lwf", "ce")] == [True, True, False]
    assert [load_method(name).starts_untrained for name in ("scratch", "ce", "finetune")] == [True, False, False]
    assert [load_method(name).probes_student for name in ("student-ncm", "teacher-ncm")] == [True, False]
    assert [load_method(name).keeps_all_samples for name in ("joint-training", "ce")] == [True, False]
    assert [stage.lr_factor for name in ("finetune", "ce") for stage in load_method(name).stages] == [0.1, 1.0]
