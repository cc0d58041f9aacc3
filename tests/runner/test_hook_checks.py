"""Misspelt module paths, in any stage, before the first one trains."""

import copy

import pytest

from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.hook_checks import check_hooks
from tests.fakes import TinyNet, stage

PROJECTED = {
    "key": "projected_student",
    "kwargs": {"projection": {"kind": "linear", "in_features": 8, "out_features": 4}},
}
GOOD = {"train.stage1": stage("embedding"), "train.stage2": stage("classifier")}


@pytest.fixture(scope="module")
def models():
    return timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)


def changed(**changes):
    """GOOD with sections of stage 2 updated."""
    stages = copy.deepcopy(GOOD)
    for name, change in changes.items():
        stages["train.stage2"][name].update(change)
    return stages


def sub_term(key, wrapper=None, **kwargs):
    term = {"criterion": {"key": key, "kwargs": kwargs}, "weight": 1.0}
    if wrapper is not None:
        term["criterion_wrapper"] = {"key": "SimpleLossWrapper", "kwargs": wrapper}
    return {"kwargs": {"stage": "classifier", "sub_terms": {"extra": term}}}


def read(path, io="output", teacher=False):
    return {"is_from_teacher": teacher, "module_path": path, "io": io}


def test_good_stages_pass_and_are_not_changed(models):
    stages = copy.deepcopy(GOOD)
    check_hooks(stages, *models)
    assert stages == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student": {"forward_hook": {"output": ["embeding"]}}},
            r"^train\.stage2\.student\.forward_hook\.output: ResNet has no module 'embeding'; did you mean 'embedding'",
        ),
        (
            {"teacher": {"forward_hook": {"output": ["local_clasifier"]}}},
            r"^train\.stage2\.teacher\.forward_hook\.output: RefilledTeacher has no module 'local_clasifier'; did you",
        ),
        (
            {"teacher": {"forward_hook": {"output": ["local_classifier"], "input": ["layer9"]}}},
            r"^train\.stage2\.teacher\.forward_hook\.input: RefilledTeacher has no module 'layer9'",
        ),
        (
            {"teacher": {"auxiliary_model_wrapper": {"key": "refilled_teacher", "kwargs": {"embedding": "poool"}}}},
            r"^train\.stage2\.teacher\.auxiliary_model_wrapper\.kwargs\.embedding: ResNet has no module 'poool'",
        ),
        (
            {"student": {"auxiliary_model_wrapper": PROJECTED, "forward_hook": {"output": ["projecton"]}}},
            r"^train\.stage2\.student\.forward_hook\.output: ProjectedStudent has no module 'projecton'; did you mea",
        ),
        (
            {"student": {"auxiliary_model_wrapper": {**PROJECTED, "kwargs": {"projection": {"kind": "linear"}}}}},
            r"^train\.stage2\.student\.auxiliary_model_wrapper\.kwargs\.projection\.in_features: missing",
        ),
        (
            {"student": {"frozen_modules": ["layer1", "layer7"]}},
            r"^train\.stage2\.student\.frozen_modules: ResNet has no module 'layer7'",
        ),
        (
            {"teacher": {"forward_hook": {"output": ["embedding"]}}},
            r"^train\.stage2\.teacher\..*output: stage 'classifier' reads 'local_classifier', which is not listed; ",
        ),
        (
            {"criterion": sub_term("MSELoss", {"input": read("layer1"), "target": read("embedding", teacher=True)})},
            r"^train\.stage2\.student\.forward_hook\.output: extra reads 'layer1', which is not listed",
        ),
        (
            {"criterion": sub_term("MSELoss", {"input": read("."), "target": read("fc", "input", teacher=True)})},
            r"^train\.stage2\.teacher\.forward_hook\.input: extra reads 'fc', which is not listed; there are none",
        ),
        (
            {"criterion": sub_term("MSELoss", {"input": read(".", "input"), "target": read(".", teacher=True)})},
            r"^train\.stage2\.student\.forward_hook\.input: extra reads '\.', which is not listed",
        ),
        (
            {"criterion": sub_term("refilled_relationship", student_module_path="layer1")},
            r"^train\.stage2\.student\.forward_hook\.output: extra reads 'layer1', which is not listed",
        ),
        (
            {
                "criterion": sub_term(
                    "KDLoss",
                    student_module_path=".",
                    student_module_io="output",
                    teacher_module_path="fc",
                    teacher_module_io="output",
                    temperature=1.0,
                    alpha=0.5,
                )
            },
            r"^train\.stage2\.teacher\.forward_hook\.output: extra reads 'fc', which is not listed",
        ),
    ],
)
def test_each_misspelling_is_one_line(models, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_hooks(changed(**changes), *models)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"forward_hook": {"output": ["embedding", "layer4.0", "layer4.-1.bn2"]}}},
        {"student": {"forward_hook": {"output": ["embedding", "+adapter"], "input": None}}},
        {"student": {"frozen_modules": ["instance(BatchNorm2d)", "conv1"]}},
        {"student": {"auxiliary_model_wrapper": {"key": "Linear4CCKD"}, "forward_hook": {"output": ["any"]}}},
        {"student": {"auxiliary_model_wrapper": PROJECTED, "forward_hook": {"output": ["projection", "student.fc"]}}},
        {"student": {"forward_hook": None}},
        {"criterion": sub_term("CrossEntropyLoss", {"input": read("."), "target": {"uses_label": True}})},
        {"criterion": {"kwargs": {"stage": "classifier", "adaptive": False}}},
        {"teacher": {"forward_hook": {"output": ["local_classifier", "teacher.layer1", "embedding"]}}},
    ],
)
def test_what_torchdistill_takes_passes(models, changes):
    check_hooks(changed(**changes), *models)


def test_a_teacher_without_the_wrapper(models):
    stages = {"train.stage1": stage("embedding")}
    stages["train.stage1"]["teacher"]["auxiliary_model_wrapper"] = {}
    check_hooks(stages, *models)
    stages["train.stage1"]["teacher"]["forward_hook"]["output"] = ["local_classifier"]
    with pytest.raises(ConfigError, match="ResNet has no module 'local_classifier'"):
        check_hooks(stages, *models)


def test_without_a_teacher():
    section = stage("embedding")
    section["model"] = {"forward_proc": "forward_batch_only", "forward_hook": {"output": ["pool"]}}
    terms = {"x": sub_term("MSELoss", {"input": read("pool"), "target": {}})["kwargs"]["sub_terms"]["extra"]}
    section["criterion"] = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}
    check_hooks({"train": section}, None, TinyNet())
    terms["x"]["criterion_wrapper"]["kwargs"]["target"] = read(".", teacher=True)
    with pytest.raises(ConfigError, match=r"^train\.criterion: x reads the teacher, but there is no models\.teacher"):
        check_hooks({"train": section}, None, TinyNet())
    section["criterion"] = {"key": "refilled", "kwargs": {"stage": "classifier"}}
    with pytest.raises(ConfigError, match=r"^train\.criterion: stage 'classifier' reads the teacher, but there is no"):
        check_hooks({"train": section}, None, TinyNet())
