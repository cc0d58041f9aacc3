import pytest
import yaml

from gkd_plugin.compare.method import MethodStage, load_method, method_names
from tests.fakes import cross_entropy
from tests.runner.fakes import refused


def test_titles_tell_the_methods_apart():
    methods = {name: load_method(name) for name in method_names()}
    assert all(method.name == name != method.title for name, method in methods.items())
    assert len({method.title for method in methods.values()}) == len(methods) >= 14


@pytest.fixture
def mine(tmp_path):
    """The method that a text describes."""

    def load(text, name="mine.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_method(str(tmp_path / name))

    return load


def test_a_file_of_ones_own(mine):
    method = mine("classes: 'same'\nstages:\n  - {like: 'embedding', student: {forward_hook: null}}\n", "mine.yml")
    assert (method.name, method.title, method.classes) == ("mine", "mine", "same")
    assert method.stages == (MethodStage(like="embedding", student={"forward_hook": None}),)
    assert (method.student, method.memory, method.probe, method.of) == (None, "as configured", None, None)


def test_keys_without_a_value_are_as_if_left_out_and_factors_are_floats(mine):
    text = "stages: [{epochs: null, student: null, criterion: null, lr_factor: null, max_grad_norm: null}]"
    assert mine(text).stages == (MethodStage(),)
    assert repr(mine("stages: [{lr_factor: 2}]").stages) == repr((MethodStage(lr_factor=2.0),))


def test_cross_entropy_may_be_written_as_its_weight(mine):
    rkd = "{criterion: {key: 'RKDLoss', kwargs: {}}, weight: 2.0}"
    kwargs = f"{{sub_terms: {{cross_entropy: 0.5, rkd: {rkd}}}}}"
    (stage,) = mine(f"stages: [{{criterion: {{key: 'WeightedSumLoss', kwargs: {kwargs}}}}}]").stages
    assert stage.criterion["kwargs"]["sub_terms"] == {"cross_entropy": cross_entropy(0.5), "rkd": yaml.safe_load(rkd)}


@pytest.mark.parametrize("criterion", ["{key: 'x'}", "{kwargs: 3}", "{kwargs: {sub_terms: {cross_entropy: {a: 1}}}}"])
def test_other_criteria_stay_as_they_are(criterion, mine):
    assert mine(f"stages: [{{criterion: {criterion}}}]").stages[0].criterion == yaml.safe_load(criterion)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: 'x'", "stages: nothing given; must be a list of stages"),
        ("stages: 'all'", "stages: 'all' given; must be a list"),
        ("stages: [3]", r"stages\.0: 3 given; must be a section with criterion, epochs, like, "),
        ("{_place: 1, stages: [{}]}", "_place: unknown key; allowed: "),
        ("stages: [{x-place: 1}]", r"stages\.0\.x-place: unknown key; allowed: "),
        ("stage: []", "stage: unknown key; did you mean 'stages'"),
        ("stages: [{lik: 'embedding'}]", r"stages\.0\.lik: unknown key; did you mean 'like'"),
        ("stages: [{like: 'embeding'}]", r"stages\.0\.like: 'embeding' given; did you mean 'embedding'"),
        ("stages: [{epochs: 3}]", r"stages\.0\.epochs: 3 given; allowed: 'all', 'null', or leave it out"),
        ("stages: [{}, {teacher: 3}]", r"stages\.1\.teacher: 3 given; must be a section"),
        ("stages: [{train_data_loader: 5}]", r"stages\.0\.train_data_loader: 5 given; must be a section"),
        ("stages: [{max_grad_norm: -2}]", r"stages\.0\.max_grad_norm: -2 given; must be a finite number above 0"),
        ("stages: [{criterion: 'refilled'}]", r"stages\.0\.criterion: 'refilled' given; must be a section"),
        ("{classes: 'sam', stages: [{}]}", "classes: 'sam' given; did you mean 'same'.*, or leave it out$"),
        ("{student: 'techer', stages: [{}]}", "student: 'techer' given; did you mean 'teacher'"),
        ("{student: null, stages: [{}]}", "student: nothing given; allowed: 'teacher', 'untrained', or leave it out"),
        ("{of: 'student', stages: [{}]}", "of: says whose embedding a probe reads, and there is no probe"),
        ("{of: 'teacher', probe: 'ncm'}", "of: 'teacher' given; allowed: 'student', or leave it out"),
        ("stages: [{teacher: {a: ['{student_embeding}']}}]", r"'\{student_embeding\}' in .*; did you mean"),
        ("stages: [{teacher: {a: '{student_width}.fc'}}]", r"'\{student_width\}' in '\{student_width\}\.fc'"),
        ("probe: 'nc'", "probe: 'nc' given; did you mean 'ncm'"),
        ("{probe: 'ncm', stages: [{}]}", "probe: trains nothing; remove stages, student and teacher"),
        ("{probe: 'ncm', student: 'teacher'}", "probe: trains nothing; remove stages, student and teacher"),
        ("{teacher: 'fintune', stages: [{}]}", "teacher: 'fintune' given; did you mean 'finetune'.*, or leave it out"),
        ("{memory: 5, stages: [{}]}", "memory: 5 given; allowed: 'null', or leave it out"),
        ("stages: [{lr_factor: .inf}]", r"stages\.0\.lr_factor: inf given; must be a finite number above 0"),
        ("stages: [{lr_factor: 0}]", r"stages\.0\.lr_factor: 0 given; must be a finite number above 0"),
        ("stages: [{like: !import_get {key: 'a.b'}}]", r"stages\.0\.like: '!import_get' given; must be plain"),
        ("[]", "a config is a mapping"),
    ],
)
def test_files_that_do_not_describe_a_method(text, message, mine):
    refused(rf"mine\.yaml: .*{message}", mine, text)
