"""The one view of a config's stages."""

from __future__ import annotations

import pytest

from gkd_plugin.config.config import load_config
from gkd_plugin.config.stages import has_teacher, stages_of, student_embedding, student_entry

TEACHER = {
    "auxiliary_model_wrapper": {"key": "refilled_teacher", "kwargs": {"embedding": "avgpool"}},
    "forward_hook": {"output": ["embedding"]},
}


PROJECTED = {"key": "projected_student"}


def config(train, **models):
    return {"datasets": {"d": "images"}, "models": models, "train": train}


def test_stages_come_in_the_order_of_their_numbers():
    train = {"stage10": {}, "stage2": {}, "stage1": {}, "log_freq": 1, "stages": 3}
    assert [(s.name, s.path, s.is_last) for s in stages_of(config(train))] == [
        ("stage1", "train.stage1", False),
        ("stage2", "train.stage2", False),
        ("stage10", "train.stage10", True),
    ]


def test_a_training_of_one_stage_is_train_itself():
    (stage,) = stages_of(
        config({"num_epochs": 3, "model": {"forward_hook": None}, "criterion": {"key": "WeightedSumLoss"}})
    )
    assert (stage.name, stage.path, stage.epochs, stage.kind) == ("train", "train", 3, None)
    assert stage.is_last
    assert stage.teacher is None
    assert stage.student.path == "train.model"
    assert stage.student.hooks() == []
    assert stage.student.wrapper is None
    assert stage.val_loader is None
    assert stage.roles == [stage.student]


def test_a_stage_keeps_the_loaders_of_the_one_before():
    first = {
        "train_data_loader": {"dataset_id": "d", "batch_sampler": {"kwargs": {"n": 2}}},
        "val_data_loader": {"v": 1},
    }
    train = {"stage1": first, "stage2": {"train_data_loader": None}, "stage3": {"val_data_loader": {"v": 2}}}
    stages = stages_of(config(train))
    assert all(stage.loader is first["train_data_loader"] for stage in stages)
    assert [stage.val_loader for stage in stages] == [{"v": 1}, {"v": 1}, {"v": 2}]
    assert stages[1].batch_sampler == {"n": 2}
    assert stages[1].dataset(config(train)) == "images"
    assert train["stage2"] == {"train_data_loader": None}, "the config is left as it was"


@pytest.mark.parametrize(("key", "kind"), [("refilled", "joint"), ("WeightedSumLoss", None)])
def test_kind_is_that_of_our_criterion(key, kind):
    train = {"stage1": {"criterion": {"key": key, "kwargs": {"stage": "joint"}}}}
    assert stages_of(config(train))[0].kind == kind


def test_roles():
    train = {"stage1": {"teacher": TEACHER, "student": {"sequential": ["conv1"]}}}
    (stage,) = stages_of(config(train))
    teacher, student = stage.roles
    assert (teacher.path, student.path) == ("train.stage1.teacher", "train.stage1.student")
    assert (teacher.wrapper, teacher.wrapper_kwargs) == ("refilled_teacher", {"embedding": "avgpool"})
    assert teacher.hooks() == ["embedding"]
    assert teacher.hooks("input") == []
    assert [role.is_redesigned for role in (teacher, student)] == [False, True]


def test_models():
    with_teacher = config({}, teacher_model={"key": "a"}, student_model={"key": "b"})
    assert student_entry(with_teacher) == ("models.student_model", {"key": "b"})
    assert student_entry(config({}, model={"key": "c"})) == ("models.model", {"key": "c"})
    assert has_teacher(with_teacher)
    assert not has_teacher(config({}, teacher_model=None))


def criterion(key="refilled", **kwargs):
    return {"criterion": {"key": key, "kwargs": kwargs}}


@pytest.mark.parametrize(
    ("key", "train", "path"),
    [
        ("timm_model", criterion("WeightedSumLoss"), "embedding"),
        ("timm_model", {"stage1": criterion(stage="embedding", student_embedding="pool")}, "embedding"),
        ("resnet18", {"stage1": criterion(stage="embedding", student_embedding="avgpool")}, "avgpool"),
        ("mine", {"stage1": criterion(stage="embedding")}, "embedding"),
        ("resnet18", criterion(stage="joint", student_embedding="avgpool"), "avgpool"),
        (
            "resnet18",
            {"student": {"auxiliary_model_wrapper": {**PROJECTED, "kwargs": {"embedding": "avgpool"}}}},
            "avgpool",
        ),
        ("mine", {"student": {"auxiliary_model_wrapper": PROJECTED}}, "embedding"),
        ("resnet18", {"stage1": criterion(stage="classifier")}, None),
        ("resnet18", {"stage1": criterion("WeightedSumLoss", stage="embedding"), "stage2": {}}, None),
    ],
)
def test_the_path_of_the_students_embedding(key, train, path):
    assert student_embedding(config(train, student_model={"key": key})) == path


@pytest.mark.parametrize(
    ("section", "trains"),
    [
        (criterion(stage="embedding"), False),
        (criterion(stage="embedding", sub_terms={}), False),
        (criterion(stage="embedding", sub_terms={"ce": {}}), True),
        (criterion(stage="classifier"), True),
        (criterion("WeightedSumLoss", stage="embedding"), True),
    ],
)
def test_which_stages_train_the_classifier(section, trains):
    assert stages_of(config({"stage1": section}))[0].trains_classifier is trains


def test_shipped_configuration(pytestconfig):
    found = load_config(pytestconfig.rootpath / "configs/digits/digits_refilled.yaml", needs_checkpoints=False).stages
    assert [stage.kind for stage in found] == ["embedding", "classifier"]
