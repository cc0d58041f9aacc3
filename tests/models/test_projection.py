"""Projections, and methods with two of them in torchdistill's box: what is trained, the value of one batch."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional
from torch.utils.data import SequentialSampler
from torchdistill.losses.registry import get_mid_level_loss

import gkd_plugin
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import ProjectedStudent, timm_model
from gkd_plugin.models.projection import Projection, make_projection
from tests.fakes import TinyImages, cross_entropy, loader, make_box, stage
from tests.runner.fakes import refused

E = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
METHODS = Path(gkd_plugin.__file__).parent / "compare/methods"
BOTH_PROJECT = ("cckd", "crd", "srd", "srd-features", "vkd", "inverted-projector")
WIDTH = timm_model("test_resnet").head_hidden_size


@pytest.mark.parametrize(
    ("kind", "out_features"),
    [
        ("identity", None),
        ("linear", 4),
        ("normalised", 4),
        ("standardised", 4),
        ("standardised", None),
        ("orthogonal", 4),
        ("orthogonal", 2),
        ("layer_normalised", None),
    ],
)
def test_projections(kind, out_features):
    projection = Projection(kind, 3, out_features)
    linear = [module for module in projection.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == (out_features is not None)
    assert bool(list(projection.parameters())) == bool(linear)
    z = E @ linear[0].weight.T if linear else E
    if kind == "orthogonal":
        assert linear[0].bias is None
        narrow = min(linear[0].weight, linear[0].weight.T, key=len)
        torch.testing.assert_close(narrow @ narrow.T, torch.eye(len(narrow)))
    elif linear:
        z = z + linear[0].bias
    want = {
        "normalised": z / z.square().sum(dim=1, keepdim=True).sqrt(),
        "standardised": (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-4).sqrt(),
        "layer_normalised": torch.stack([(row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() for row in E]),
    }.get(kind, z)
    torch.testing.assert_close(projection(E), want)
    with torch.autocast("cpu", torch.bfloat16):
        half = projection(E.bfloat16())
    assert torch.equal(half, projection(E.bfloat16().float()))  # in float32, under autocast too


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (3, r": must be a section with kind, in_features, out_features, got 3"),
        ({"kind": "linear", "in_feature": 3}, r"\.in_feature: unknown key; did you mean 'in_features'"),
        ({"kind": "linear", "out_features": 3}, r"\.in_features: missing"),
        ({"kind": "linera", "in_features": 3}, r"\.kind: 'linera' is unknown; did you mean 'linear'"),
        ({"kind": "identity", "in_features": 3, "out_features": 4}, r"\.out_features: 4 given; 'identity' keeps"),
        ({"kind": "normalised", "in_features": 3}, r"\.out_features: missing; 'normalised' needs it"),
        ({"kind": "linear", "in_features": 0, "out_features": 3}, r"\.in_features must be a whole number from 1 up"),
        ({"kind": "linear", "in_features": 3, "out_features": "8"}, r"\.out_features must be .* from 1 up, got '8'"),
    ],
)
def test_sections_that_describe_none(section, message):
    refused(rf"^auxiliary_model_wrapper\.kwargs\.projection{message}", make_projection, section)


def method_stage(name, teacher_width=WIDTH):
    """The stage of a file of compare's methods, as a section of ``train``."""
    text = (METHODS / f"{name}.yaml").read_text(encoding="utf-8")
    sizes = {"student_width": WIDTH, "teacher_width": teacher_width, "num_samples": 24, "num_negatives": 6}
    for placeholder, value in {**sizes, "student_embedding": "embedding"}.items():
        text = text.replace(f"'{{{placeholder}}}'", str(value))
    (method,) = yaml.safe_load(text)["stages"]
    section, wrapper = stage("embedding"), method["teacher"]["auxiliary_model_wrapper"]
    wrapper |= {"key": "refilled_teacher", "kwargs": {"preprocessing": "data", **wrapper["kwargs"]}}
    section["train_data_loader"] = loader("train", SequentialSampler) | method.get("train_data_loader", {})
    section["teacher"] |= method["teacher"]
    section["student"] |= method["student"]
    section["criterion"] = method["criterion"]
    section["criterion"]["kwargs"]["sub_terms"]["cross_entropy"] = cross_entropy()
    return section


@pytest.fixture
def box_of(monkeypatch):
    def make(section, teacher_classes=10):
        torch.manual_seed(0)
        monkeypatch.setattr(TinyImages, "classes", ("zero", "one", "two", "three"), raising=False)  # for CRD's data
        teacher = timm_model("test_resnet", num_classes=teacher_classes)
        return make_box(section, teacher, timm_model("test_resnet", num_classes=4))

    return make


def one_batch(box):
    images, labels, supplement = next(iter(box.train_data_loader))
    return box.forward_process(images, labels, supplement), labels, supplement


@pytest.mark.parametrize("name", BOTH_PROJECT)
def test_a_loss_is_a_direct_call_of_torchdistills_and_trains_student_and_projections_alone(name, box_of):
    """Of projections of the plain models' embeddings. The teacher has other classes, but for SRD, of logits."""
    section = method_stage(name)
    box = box_of(section, teacher_classes=4 if name == "srd" else 10)
    box.teacher_model.train()
    box.pre_epoch_process(epoch=0)
    wrappers = (box.student_model, box.teacher_model)
    before = [copy.deepcopy(wrapper.state_dict()) for wrapper in wrappers]
    bare = [copy.deepcopy(model) for model in (box.student_model.student, box.teacher_model.teacher)]
    projections = [copy.deepcopy(wrapper.projection) for wrapper in wrappers]
    (key,) = section["criterion"]["kwargs"]["sub_terms"].keys() - {"cross_entropy"}
    term = section["criterion"]["kwargs"]["sub_terms"][key]
    direct = get_mid_level_loss(term["criterion"], term.get("criterion_wrapper"))
    if name == "crd":
        assert box.criterion.term_dict[name][0].memory_v1.shape == (24, 128)
        direct.load_state_dict(box.criterion.term_dict[name][0].state_dict())
    loss, labels, supplement = one_batch(box)

    images = torch.stack([box.train_data_loader.dataset.org_dataset[i][0] for i in range(12)])
    io_dicts = []
    for model, projection in zip(bare, projections, strict=True):
        embedding = model.forward_head(model.forward_features(images), pre_logits=True).detach()
        io_dict = {".": {"output": model(images)}, "projection": {"output": projection(embedding)}}
        io_dicts.append({**io_dict, "supplement": {"input": supplement}})
    expected = functional.cross_entropy(io_dicts[0]["."]["output"], labels) + term["weight"] * direct(*io_dicts, labels)
    assert torch.allclose(loss, expected, rtol=1e-4)

    box.post_forward_process(loss=loss)
    of_student, of_teacher = (
        {key for key, value in wrapper.state_dict().items() if not torch.equal(value, old[key])}
        for wrapper, old in zip(wrappers, before, strict=True)
    )
    trained = [{f"projection.{key}" for key, _ in wrapper.projection.named_parameters()} for wrapper in wrappers]
    assert trained[0] < of_student
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert {key for key in of_teacher if not key.endswith(buffers)} == trained[1]
    assert bool(trained[1]) == (name in ("cckd", "crd", "inverted-projector"))
    assert not any(key.startswith("teacher.") for key in of_teacher)


def test_a_projection_that_the_box_would_freeze_is_refused(box_of):
    section = method_stage("cckd")
    section["teacher"]["requires_grad"] = False
    refused(r"^teacher\.requires_grad: False freezes the teacher's projection too", box_of, section)


def test_a_teachers_embedding_of_another_width_or_not_hooked(box_of):
    with pytest.raises(ConfigError, match=r"^teacher\.auxil.*\.projection\.in_features: 7 given, the embedding has"):
        one_batch(box_of(method_stage("cckd", teacher_width=7)))
    section = method_stage("cckd")
    section["teacher"]["forward_hook"] = {"output": ["projection"]}
    refused(r"the teacher's 'embedding'/output is not recorded", one_batch, box_of(section))


LINEAR = {"kind": "linear", "in_features": WIDTH, "out_features": 5}


def test_the_output_is_the_students_and_its_weights_are_its_own():
    student = timm_model("test_resnet", num_classes=4).eval()
    names = set(student.state_dict())
    wrapped = ProjectedStudent(student, projection=LINEAR).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(wrapped(images), student(images))
    assert set(student.state_dict()) == names
    added = {key for key in wrapped.state_dict() if not key.startswith("student.")}
    assert added == {"projection.layers.weight", "projection.layers.bias"}


def test_what_a_student_cannot_use():
    student = timm_model("test_resnet", num_classes=4)
    with pytest.raises(ConfigError, match=r"kwargs\.embedding: ResNet has no module 'embeding'; did you mean 'embedd"):
        ProjectedStudent(student, embedding="embeding", projection=LINEAR)
    with pytest.raises(ConfigError, match=r"^student\.auxil.*\.projection\.in_features: 3 given, the embedding has"):
        ProjectedStudent(student, projection={**LINEAR, "in_features": 3})(torch.randn(2, 3, 32, 32))
