"""CCKD, CRD and SRD in torchdistill's box: what is trained, what is not, and the value of one batch."""

import copy

import pytest
import torch
from torch.utils.data import SequentialSampler
from torchdistill.losses.mid_level import CCKDLoss, CRDLoss, SRDLoss
from torchdistill.models.classification.wide_resnet import wide_resnet

from gkd_plugin.compare.method import load_method
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.models.projection import Projection
from gkd_plugin.models.student import ProjectedStudent
from tests.fakes import TinyImages, loader, make_box, stage

LINEAR = {"kind": "linear", "in_features": 32, "out_features": 5}
LOSSES = {"cckd": CCKDLoss, "crd": CRDLoss, "srd": SRDLoss}


class NamedImages(TinyImages):
    """With class names, as CRDDatasetWrapper needs them."""

    classes = ("zero", "one", "two", "three")


def filled(value, sizes):
    if isinstance(value, dict):
        return {key: filled(item, sizes) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, sizes) for item in value]
    return sizes.get(value, value)


def method_stage(name, **sizes):
    """The stage of a method file, as a section of ``train``."""
    (method,) = load_method(name).stages
    sizes = {"student_width": 32, "teacher_width": 32, "num_samples": 24, "num_negatives": 6, **sizes}
    sizes = {f"{{{key}}}": value for key, value in sizes.items()} | {"{student_embedding}": "embedding"}
    teacher, student = filled(dict(method.teacher), sizes), filled(dict(method.student), sizes)
    kwargs = {"preprocessing": "data", **teacher["auxiliary_model_wrapper"]["kwargs"]}
    section = stage("embedding")
    section["train_data_loader"] = loader("train", SequentialSampler) | filled(dict(method.train_data_loader), sizes)
    section["teacher"] |= {**teacher, "auxiliary_model_wrapper": {"key": "refilled_teacher", "kwargs": kwargs}}
    section["student"] |= student
    section["criterion"] = filled(dict(method.criterion), sizes)
    return section


def box_of(section, student=None, teacher_classes=10, monkeypatch=None):
    torch.manual_seed(0)
    teacher = timm_model("test_resnet", num_classes=teacher_classes)
    student = student or timm_model("test_resnet", num_classes=4)
    monkeypatch.setattr("tests.fakes.TinyImages", NamedImages)
    return make_box(section, teacher, student)


def width(name):
    return timm_model(name, num_classes=4).head_hidden_size


@pytest.fixture
def sizes():
    return {"student_width": width("test_resnet"), "teacher_width": width("test_resnet")}


def one_batch(box):
    """Its loss, and what the hooks of both models recorded."""
    seen = {}
    criterion = box.criterion.forward
    box.criterion.forward = lambda io_dict, *rest: seen.update(io_dict) or criterion(io_dict, *rest)
    images, labels, supplement = next(iter(box.train_data_loader))
    return box.forward_process(images, labels, supplement), seen, labels, supplement


@pytest.mark.parametrize("name", ["cckd", "crd", "srd"])
def test_the_loss_of_a_batch_is_a_direct_call_of_torchdistills(name, sizes, monkeypatch):
    """The projections recomputed from the plain student's and the bare teacher's embeddings."""
    section = method_stage(name, **sizes)
    box = box_of(section, teacher_classes=4 if name == "srd" else 10, monkeypatch=monkeypatch)
    box.pre_epoch_process(epoch=0)
    projections = [copy.deepcopy(model.projection) for model in (box.student_model, box.teacher_model)]
    student = copy.deepcopy(box.student_model.student)
    terms = section["criterion"]["kwargs"]["sub_terms"]
    direct = LOSSES[name](**terms[name]["criterion"]["kwargs"])
    theirs = box.criterion.term_dict[name][0]
    if name == "crd":
        assert theirs.memory_v1.shape == (24, 128)
        direct.load_state_dict(theirs.state_dict())
    loss, _, labels, supplement = one_batch(box)

    images = torch.stack([box.train_data_loader.dataset.org_dataset[i][0] for i in range(12)])
    logits = student.train()(images)
    embedding = student.forward_head(student.forward_features(images), pre_logits=True)
    student_io = {".": {"output": logits}, "projection": {"output": projections[0](embedding)}}
    teacher = box.teacher_model.teacher
    with torch.no_grad():
        own, known = teacher(images), teacher.forward_head(teacher.forward_features(images), pre_logits=True)
    teacher_io = {".": {"output": own}, "projection": {"output": projections[1](known)}}
    student_io["supplement"] = {"input": supplement}
    expected = torch.nn.functional.cross_entropy(logits, labels)
    expected = expected + terms[name]["weight"] * direct(student_io, teacher_io, labels)
    assert torch.allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["cckd", "crd", "srd"])
def test_projections_are_trained_and_the_teacher_is_not(name, sizes, monkeypatch):
    """A teacher of 10 classes and a student of 4 others, but for SRD, which compares logits."""
    section = method_stage(name, **sizes)
    box = box_of(section, teacher_classes=4 if name == "srd" else 10, monkeypatch=monkeypatch)
    teacher, student = box.teacher_model, box.student_model
    before = {role: copy.deepcopy(model.state_dict()) for role, model in (("t", teacher), ("s", student))}
    box.teacher_model.train()
    box.pre_epoch_process(epoch=0)
    for images, labels, supplement in box.train_data_loader:
        box.post_forward_process(loss=box.forward_process(images, labels, supplement))
    after = {"t": teacher.state_dict(), "s": student.state_dict()}

    moved = {role: {k for k in after[role] if not torch.equal(after[role][k], before[role][k])} for role in after}
    assert not any(key.startswith("teacher.") for key in moved["t"])
    assert not teacher.teacher.training
    assert any(key.startswith("student.") for key in moved["s"])
    for role, model in (("t", teacher), ("s", student)):
        trained = {f"projection.{key}" for key, _ in model.projection.named_parameters()}
        assert bool(trained) == (role == "s" or name != "srd")
        assert trained <= moved[role]
    optimized = {id(p) for group in box.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in teacher.parameters()} & optimized == {id(p) for p in teacher.projection.parameters()}
    assert {id(p) for p in student.parameters()} <= optimized


def test_negatives_are_of_other_classes(sizes, monkeypatch):
    box = box_of(method_stage("crd", **sizes), monkeypatch=monkeypatch)
    targets = TinyImages().targets
    for _, labels, supplement in box.train_data_loader:
        assert [targets[i] for i in supplement["pos_idx"]] == labels.tolist()
        assert torch.equal(supplement["contrast_idx"][:, 0], supplement["pos_idx"])
        assert supplement["contrast_idx"].shape == (12, 7)
        for label, negatives in zip(labels.tolist(), supplement["contrast_idx"][:, 1:].tolist(), strict=True):
            assert label not in {targets[i] for i in negatives}
            assert len(set(negatives)) == 6


def test_a_projection_that_the_box_would_freeze_is_refused(sizes, monkeypatch):
    section = method_stage("cckd", **sizes)
    section["teacher"]["requires_grad"] = False
    with pytest.raises(ConfigError, match=r"^teacher\.requires_grad: False freezes the teacher's projection too"):
        box_of(section, monkeypatch=monkeypatch)


def test_a_teachers_embedding_of_another_width(sizes, monkeypatch):
    box = box_of(method_stage("cckd", **{**sizes, "teacher_width": 7}), monkeypatch=monkeypatch)
    with pytest.raises(ConfigError, match=r"^teacher\.auxil.*\.projection\.in_features: 7 given, the embedding has"):
        one_batch(box)


def test_a_teachers_embedding_that_is_not_hooked(sizes, monkeypatch):
    section = method_stage("cckd", **sizes)
    section["teacher"]["forward_hook"] = {"output": ["projection"]}
    box = box_of(section, monkeypatch=monkeypatch)
    with pytest.raises(ConfigError, match=r"the teacher's 'embedding'/output is not recorded"):
        one_batch(box)


def test_the_output_is_the_students_and_its_weights_are_its_own():
    student = timm_model("test_resnet", num_classes=4).eval()
    names = set(student.state_dict())
    wrapped = ProjectedStudent(student, projection={**LINEAR, "in_features": student.head_hidden_size}).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(wrapped(images), student(images))
    assert set(student.state_dict()) == names
    assert {key for key in wrapped.state_dict() if not key.startswith("student.")} == {
        "projection.layers.weight",
        "projection.layers.bias",
    }


def test_an_embedding_of_torchdistills_wide_resnet():
    """'avgpool' is [B, D, 1, 1] there."""
    student = wide_resnet(10, 1, 0.0, num_classes=4, pretrained=False, progress=False).eval()
    wrapped = ProjectedStudent(student, embedding="avgpool", projection={**LINEAR, "in_features": 64})
    seen = []
    wrapped.projection.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    wrapped(torch.randn(2, 3, 32, 32))
    assert [tuple(x.shape) for x in seen] == [(2, 64), (2, 5)]
    assert isinstance(wrapped.projection, Projection)


def test_what_cannot_be_used():
    student = timm_model("test_resnet", num_classes=4)
    with pytest.raises(ConfigError, match=r"kwargs\.embedding: ResNet has no module 'embeding'; did you mean 'embedd"):
        ProjectedStudent(student, embedding="embeding", projection=LINEAR)
    with pytest.raises(ConfigError, match=r"kwargs\.projection\.kind: there is no 'lin'"):
        ProjectedStudent(student, projection={**LINEAR, "kind": "lin"})
    with pytest.raises(ConfigError, match=r"^student\.auxil.*\.projection\.in_features: 3 given, the embedding has"):
        ProjectedStudent(student, projection={**LINEAR, "in_features": 3})(torch.randn(2, 3, 32, 32))
