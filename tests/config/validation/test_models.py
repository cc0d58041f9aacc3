"""Models and checkpoint paths."""

from __future__ import annotations

import pytest

from tests.config.validation.samples import MODULE, PLAIN_TRAINING, STAGES, found


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("models.studnet_model=1", "models.studnet_model: unknown key; did you mean 'student_model'"),
        ("models.model.kwarg={}", "models.model.kwarg: unknown key; did you mean 'kwargs'"),
        ("models=[1]", "models: [1] given; must be a section with model, student_model, teacher_model"),
        ("models.model=resnet18", "models.model: 'resnet18' given; must be a section"),
        ("models.model.kwargs=", "models.model.kwargs: nothing given; must be a section"),
        ("models.model.quantized=3", "models.model.quantized: 3 given; must be true or false"),
        (f"{MODULE}.src_ckpt=3", f"{MODULE}.src_ckpt: 3 given; must be the path of a file"),
        ("models.model.src_ckpt_classifier=nwe", "src_ckpt_classifier: 'nwe' given; did you mean 'new'"),
        ("models.model.key=resnet181", "models.model.key: 'resnet181' is not registered; did you mean 'resnet18'"),
        ("models.model.key=", "models.model.key: nothing given"),
        ("models.model.key=detection", "models.model.key: 'detection' is a module of torchvision"),
        ("models.model.src_ckpt=runs/no.pt", "models.model.src_ckpt: no such file: runs/no.pt; train it first"),
        ("train.model.src_ckpt=runs/no.pt", "train.model.src_ckpt: no such file: runs/no.pt"),
    ],
)
def test_rules(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("models", "models: missing"),
        ("models.model", "models.student_model: missing"),
        ("models.model.kwargs", "models.model.kwargs: missing"),
    ],
)
def test_required_parts(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize(
    "change",
    [
        "models.model.src_ckpt=https://example.org/x.pt",
        "models.model={key: resnet18, kwargs: {num_classes: 3}, quantized: true}",
        "models.model={key: anything, repo_or_dir: owner/repo, kwargs: {x: 1}}",
    ],
)
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("models.student_model.kwargs.model_name=resnet81", "timm has no model 'resnet81'; did you mean 'resnet"),
        ("models.student_model.kwargs={}", "models.student_model.kwargs: argument 'model_name' is missing"),
    ],
)
def test_rules_in_stages(change, line):
    lines = found(STAGES, change)
    assert any(line in given for given in lines), lines


def test_checkpoints_that_exist_or_will(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = "models.model.src_ckpt=./runs/teacher.pt"
    assert found(PLAIN_TRAINING, change) != []
    assert found(PLAIN_TRAINING, change, produced=["runs/teacher.pt"]) == []
    assert found(PLAIN_TRAINING, change, needs_checkpoints=False) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher.pt").touch()
    assert found(PLAIN_TRAINING, change) == []


def test_only_a_students_classifier_begins_at_class_centres():
    for value in ("new", "centres", "extended", "null"):
        lines = found(STAGES, f"models.teacher_model.src_ckpt_classifier={value}")
        told = [line for line in lines if "models.teacher_model.src_ckpt_classifier" in line]
        assert len(told) == (value == "centres"), told
        assert not found(PLAIN_TRAINING, f"models.model.src_ckpt_classifier={value}")
