"""Misspelt module paths in any stage, and images that a model cannot take, before the first stage trains."""

import copy

import pytest
import torch
from accelerate import Accelerator

from gkd_plugin.config.stages import stages_of
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.checks import check_forward, check_hooks, first_images
from tests.fakes import TinyImages, TinyNet, stage

KD = {"student_module_path": ".", "student_module_io": "output", "teacher_module_io": "output", "temperature": 1.0}


@pytest.fixture(scope="module")
def models():
    return timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)


def stages(**changes):
    """Both stages of ReFilled, with sections of the second updated."""
    second = stage("classifier")
    for name, change in changes.items():
        second[name] = {**second[name], **change}
    return stages_of({"train": {"stage1": stage("embedding"), "stage2": second}})


def sub_term(key, wrapper=None, **kwargs):
    term = {"criterion": {"key": key, "kwargs": kwargs}, "weight": 1.0}
    if wrapper is not None:
        term["criterion_wrapper"] = {"key": "SimpleLossWrapper", "kwargs": wrapper}
    return {"kwargs": {"stage": "classifier", "sub_terms": {"extra": term}}}


def mse(student, teacher):
    """A sub-term that compares (module path, io) of the student with that of the teacher."""
    pairs = (("input", False, student), ("target", True, teacher))
    sides = {side: {"is_from_teacher": teacher, "module_path": path, "io": io} for side, teacher, (path, io) in pairs}
    return sub_term("MSELoss", sides)


def hooks(*outputs, **more):
    return {"forward_hook": {"output": list(outputs), **more}}


def wrapped(key, **kwargs):
    return {"auxiliary_model_wrapper": {"key": key, "kwargs": kwargs}}


PROJECTED = wrapped("projected_student", projection={"kind": "linear", "in_features": 8, "out_features": 4})
LOSS_INPUT = {"input": {"is_from_teacher": False, "module_path": ".", "io": "output"}, "target": {"uses_label": True}}
OUTPUT, INPUT, KWARGS = "forward_hook.output", "forward_hook.input", "auxiliary_model_wrapper.kwargs"


@pytest.mark.parametrize(
    ("changes", "place", "parts"),
    [
        ({"student": hooks("embeding")}, f"student.{OUTPUT}", ["'embeding'", "'embedding'"]),
        ({"teacher": hooks("local_clasifier")}, f"teacher.{OUTPUT}", ["RefilledTeacher", "'local_classifier'"]),
        ({"teacher": hooks("local_classifier", input=["layer9"])}, f"teacher.{INPUT}", ["'layer9'"]),
        ({"teacher": wrapped("refilled_teacher", embedding="poool")}, f"teacher.{KWARGS}.embedding", ["'poool'"]),
        ({"student": PROJECTED | hooks("projecton")}, f"student.{OUTPUT}", ["ProjectedStudent", "'projection'"]),
        (
            {"student": wrapped("projected_student", projection={"kind": "linear"})},
            f"student.{KWARGS}.projection.in_features", ["missing"],
        ),
        ({"student": {"frozen_modules": ["layer1", "layer7"]}}, "student.frozen_modules", ["'layer7'"]),
        ({"teacher": hooks("embedding")}, f"teacher.{OUTPUT}", ["stage 'classifier'", "'local_classifier'"]),
        ({"criterion": mse(("layer1", "output"), ("embedding", "output"))}, f"student.{OUTPUT}", ["extra", "'layer1'"]),
        ({"criterion": mse((".", "output"), ("fc", "input"))}, f"teacher.{INPUT}", ["extra", "'fc'", "none"]),
        ({"criterion": mse((".", "input"), (".", "output"))}, f"student.{INPUT}", ["extra", "'.'"]),
        ({"criterion": sub_term("refilled_relationship", student_module_path="a")}, f"student.{OUTPUT}", ["'a'"]),
        ({"criterion": sub_term("KDLoss", **KD, alpha=0.5, teacher_module_path="fc")}, f"teacher.{OUTPUT}", ["'fc'"]),
    ],
)  # fmt: skip
def test_each_misspelling_is_one_line(models, changes, place, parts):
    with pytest.raises(ConfigError) as caught:
        check_hooks(stages(**changes), *models)
    message = str(caught.value)
    assert message.startswith(f"train.stage2.{place}: ")
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student": hooks("embedding", "layer4.0", "layer4.-1.bn2")},
        {"student": hooks("embedding", "+adapter", input=None)},
        {"student": {"frozen_modules": ["instance(BatchNorm2d)", "conv1"]}},
        {"student": {"frozen_modules": ["any"], "sequential": ["conv1"]}},
        {"student": wrapped("Linear4CCKD") | hooks("any")},
        {"student": PROJECTED | hooks("projection", "student.fc")},
        {"student": {"auxiliary_model_wrapper": {"key": "projected_student", "sequential": ["a"]}} | hooks("any")},
        {"student": {"forward_hook": None}},
        {"criterion": sub_term("CrossEntropyLoss", LOSS_INPUT)},
        {"criterion": {"kwargs": {"stage": "classifier", "adaptive": False}}},
        {"teacher": hooks("local_classifier", "teacher.layer1", "embedding")},
    ],
)  # fmt: skip
def test_what_torchdistill_takes_passes_unchanged(models, changes):
    given = stages(**changes)
    before = copy.deepcopy(given)
    check_hooks(given, *models)
    assert given == before


def test_a_teacher_without_the_wrapper(models):
    section = stage("embedding")
    section["teacher"]["auxiliary_model_wrapper"] = {}
    check_hooks(stages_of({"train": section}), *models)
    section["teacher"]["forward_hook"]["output"] = ["local_classifier"]
    with pytest.raises(ConfigError, match="ResNet has no module 'local_classifier'"):
        check_hooks(stages_of({"train": section}), *models)


def test_without_a_teacher():
    terms = mse(("pool", "output"), (".", "output"))["kwargs"]["sub_terms"]
    terms["extra"]["criterion_wrapper"]["kwargs"]["target"] = {}
    section = {
        "model": {"forward_proc": "forward_batch_only", "forward_hook": {"output": ["pool"]}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    check_hooks(stages_of({"train": section}), None, TinyNet())
    reads_teacher = mse(("pool", "output"), (".", "output"))["kwargs"]
    for criterion, name in (
        ({"key": "WeightedSumLoss", "kwargs": {"sub_terms": reads_teacher["sub_terms"]}}, "extra"),
        ({"key": "refilled", "kwargs": {"stage": "classifier"}}, "stage 'classifier'"),
    ):
        section["criterion"] = criterion
        message = f"^train.criterion: {name} reads the teacher, but there is no models.teacher"
        with pytest.raises(ConfigError, match=message):
            check_hooks(stages_of({"train": section}), None, TinyNet())


def test_models_that_fit_leave_the_random_state_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = first_images(TinyImages())
    check_forward("models.model", torch.nn.Dropout(), images, Accelerator(cpu=True))
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deit_tiny_patch16_224", {}, r"shape \[2, 3, 32, 32\]: Input height.* \(its kwargs.img_size: 32 builds it"),
        ("test_resnet", {"in_chans": 1}, r"cannot take images of shape .*1 channels?[^(]*$"),
    ],
)
def test_sizes_and_channels_that_do_not_fit(name, changes, message):
    model = timm_model(name, num_classes=3, **changes).eval()
    with pytest.raises(ConfigError, match=rf"^models\.teacher_model: .*{message}"):
        check_forward("models.teacher_model", model, first_images(TinyImages()), Accelerator(cpu=True))


def test_what_a_model_of_ours_says_is_told_with_its_place():
    def refuses(images):
        raise ConfigError("channels")

    with pytest.raises(ConfigError, match=r"^models\.model: channels$"):
        check_forward("models.model", refuses, torch.zeros(1, 1), Accelerator(cpu=True))
