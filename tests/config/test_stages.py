"""The one view of a config's stages."""

import pytest

from gkd_plugin.config.stages import has_teacher, stages_of, student_embedding, student_entry


def config(train, **models):
    return {"models": models, "train": train}


def test_stages_come_in_the_order_of_their_numbers():
    train = {"stage10": {}, "stage2": {}, "stage1": {}, "log_freq": 1, "stages": 3}
    stages = stages_of(config(train))
    want = [(name, f"train.{name}", name == "stage10") for name in ("stage1", "stage2", "stage10")]
    assert [(stage.name, stage.path, stage.is_last) for stage in stages] == want


def test_a_training_of_one_stage_is_train_itself():
    train = {"num_epochs": 3, "model": {"forward_hook": None}, "criterion": {"key": "WeightedSumLoss"}}
    (stage,) = stages_of(config(train))
    assert (stage.name, stage.path, stage.epochs, stage.is_last) == ("train", "train", 3, True)
    assert (stage.kind, stage.teacher, stage.val_loader) == (None, None, None)
    assert (stage.student.path, stage.student.hooks(), stage.student.wrapper) == ("train.model", [], None)


def test_a_stage_keeps_the_loaders_of_the_one_before():
    loader = {"dataset_id": "d", "batch_sampler": {"kwargs": {"n": 2}}}
    first = {"train_data_loader": loader, "val_data_loader": {"v": 1}}
    train = {"stage1": first, "stage2": {"train_data_loader": None}, "stage3": {"val_data_loader": {"v": 2}}}
    stages = stages_of(config(train))
    assert [(stage.loader is loader, stage.val_loader["v"]) for stage in stages] == [(True, 1), (True, 1), (True, 2)]
    assert stages[1].batch_sampler == {"n": 2}
    assert train["stage2"] == {"train_data_loader": None}, "the config is left as it was"


def test_roles():
    wrapper = {"key": "refilled_teacher", "kwargs": {"embedding": "avgpool"}}
    section = {"auxiliary_model_wrapper": wrapper, "forward_hook": {"output": ["embedding"]}}
    (stage,) = stages_of(config({"stage1": {"teacher": section, "student": {}}}))
    teacher, student = stage.teacher, stage.student
    assert (teacher.path, student.path) == ("train.stage1.teacher", "train.stage1.student")
    assert (teacher.wrapper, teacher.wrapper_kwargs) == ("refilled_teacher", {"embedding": "avgpool"})
    assert (teacher.hooks(), teacher.hooks("input")) == (["embedding"], [])


def test_models():
    with_teacher = config({}, teacher_model={"key": "a"}, student_model={"key": "b"})
    assert student_entry(with_teacher) == ("models.student_model", {"key": "b"})
    assert student_entry(config({}, model={"key": "c"})) == ("models.model", {"key": "c"})
    assert (has_teacher(with_teacher), has_teacher(config({}, teacher_model=None))) == (True, False)


def criterion(key="refilled", **kwargs):
    return {"criterion": {"key": key, "kwargs": kwargs}}


def projected(**kwargs):
    return {"student": {"auxiliary_model_wrapper": {"key": "projected_student", "kwargs": kwargs}}}


@pytest.mark.parametrize(
    ("key", "train", "path"),
    [
        ("timm_model", criterion("WeightedSumLoss"), "embedding"),
        ("timm_model", {"stage1": criterion(stage="embedding", student_embedding="pool")}, "embedding"),
        ("resnet18", {"stage1": criterion(stage="embedding", student_embedding="avgpool")}, "avgpool"),
        ("mine", {"stage1": criterion(stage="embedding")}, "embedding"),
        ("resnet18", criterion(stage="joint", student_embedding="avgpool"), "avgpool"),
        ("resnet18", projected(embedding="avgpool"), "avgpool"),
        ("mine", projected(), "embedding"),
        ("resnet18", {"stage1": criterion(stage="classifier")}, None),
        ("resnet18", {"stage1": criterion("WeightedSumLoss", stage="embedding"), "stage2": {}}, None),
    ],
)
def test_the_path_of_the_students_embedding(key, train, path):
    assert student_embedding(config(train, student_model={"key": key})) == path


def test_kind_is_that_of_our_criterion_and_says_whether_the_classifier_is_trained():
    for section, kind, trains in (
        (criterion(stage="embedding"), "embedding", False),
        (criterion(stage="embedding", sub_terms={}), "embedding", False),
        (criterion(stage="embedding", sub_terms={"ce": {}}), "embedding", True),
        (criterion(stage="classifier"), "classifier", True),
        (criterion("WeightedSumLoss", stage="embedding"), None, True),
    ):
        (stage,) = stages_of(config({"stage1": section}))
        assert (stage.kind, stage.trains_classifier) == (kind, trains)
