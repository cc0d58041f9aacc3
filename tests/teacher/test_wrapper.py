"""The teacher's invariants, whatever a box does to it."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional
from torchdistill.models.classification.resnet import resnet20
from torchvision import transforms

from gkd_plugin.functional import class_centres
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import Answers, RefilledTeacher
from gkd_plugin.teacher.readouts import pooled
from tests.fakes import TinyImages, TinyNet
from tests.runner.fakes import equal, refused
from tests.teacher.fakes import batches, box_over, make_teacher, normalised, overlapping, record

IMAGES = batches()[0][0]
PROJECTION = {"kind": "standardised", "in_features": 96, "out_features": 6}


def fitted(own=None, of=5, **kwargs):
    """A teacher with ``of`` classes, fitted to four classes."""
    teacher = make_teacher(of, **kwargs)
    teacher.prepare(box_over(own or TinyImages(classes=4)), {})
    teacher.fit_centres(batches())
    return teacher


def test_it_stays_frozen_and_in_eval_mode_whatever_is_done_to_it_or_to_the_inner_model():
    teacher = make_teacher()
    before = copy.deepcopy(teacher.teacher.state_dict())
    assert not any(module.training for module in teacher.train().modules())
    assert not any(parameter.requires_grad for parameter in teacher.requires_grad_(True).parameters())
    teacher.teacher.train()
    got = teacher(IMAGES.clone().requires_grad_())
    assert not got.requires_grad
    assert equal(before, teacher.teacher.state_dict())
    with torch.no_grad():
        assert torch.equal(got, teacher.teacher(IMAGES))  # its output is the teacher's own


def test_what_a_hook_reads_inside_the_teacher_may_take_part_in_a_loss():
    teacher, layer = make_teacher(), {}
    student = torch.ones(1, requires_grad=True)
    teacher.teacher.layer1.register_forward_hook(lambda _m, _x, output: layer.update(output=output))
    teacher(IMAGES)
    (student * layer["output"]).sum().backward()
    assert student.grad != 0


def test_hook_paths_and_class_centres():
    teacher = make_teacher()
    seen = record(teacher, "embedding", "local_classifier")
    teacher(IMAGES)
    assert "local_classifier" not in seen  # its centres are not known yet
    teacher.fit_centres(batches())
    teacher(IMAGES)
    centres = class_centres([(teacher.embed(images), labels) for images, labels in batches()])
    torch.testing.assert_close(teacher.local_classifier.centres, centres)
    torch.testing.assert_close(seen["local_classifier"], seen["embedding"] @ centres.T)
    kept = {f"local_classifier.{name}" for name in ("centres", "weight", "bias", "teacher_labels", "shared_factors")}
    assert {key for key in teacher.state_dict() if not key.startswith("teacher.")} == kept


def test_a_teacher_without_classifier_gives_the_local_one_and_says_so_once(caplog):
    caplog.set_level(logging.INFO)
    model = timm_model("test_resnet", num_classes=0)
    for _ in range(2):
        teacher = RefilledTeacher(model, preprocessing="data")
        assert teacher(IMAGES).shape == (8, model.head_hidden_size)
        teacher.fit_centres(batches())
        torch.testing.assert_close(teacher(IMAGES), teacher.embed(IMAGES) @ teacher.local_classifier.centres.T)
    assert caplog.text.count("no classifier of its own") == 1


@pytest.mark.parametrize(
    ("make", "path", "io", "size"),
    [
        (torchvision.models.vit_b_32, "heads", "input", 224),
        (torchvision.models.convnext_tiny, "classifier.2", "input", 64),
        (resnet20, "avgpool", "output", 32),
    ],
)
def test_torchvisions_and_torchdistills_models_by_hook_path(make, path, io, size):
    with torch.device("meta"):
        teacher = RefilledTeacher(make(num_classes=3), embedding=path, embedding_io=io)
        answers = teacher.answers(torch.zeros(2, 3, size, size))
        assert (answers.embedding.ndim, answers.logits.shape) == (2, (2, 3))


def test_the_input_of_a_module_can_be_the_embedding():
    net = TinyNet()
    given_in = RefilledTeacher(net, embedding="fc", embedding_io="input").embed(IMAGES)
    torch.testing.assert_close(given_in, RefilledTeacher(net, embedding="pool").embed(IMAGES))


def test_own_device_is_kept_when_the_box_moves_the_teacher():
    teacher = make_teacher(teacher_device="meta", device=torch.device("cpu"))
    teacher.to("cpu")
    assert {x.device.type for x in [teacher, *teacher.parameters(), *teacher.buffers()]} == {"meta"}
    teacher = make_teacher(teacher_device="meta", projection=PROJECTION).double()
    assert {p.dtype for p in teacher.teacher.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.projection.parameters()} == {torch.float64}  # it is the student's


@pytest.mark.parametrize("mode", [True, False])
def test_a_projection_is_all_that_trains_in_one_process(mode):
    teacher = make_teacher(projection=PROJECTION).requires_grad_(False).train(mode).requires_grad_(True)
    assert teacher.projection.training
    assert not any(module.training for module in (teacher, *teacher.teacher.modules()))
    trained = {name for name, parameter in teacher.named_parameters() if parameter.requires_grad}
    assert trained == {"projection.layers.0.weight", "projection.layers.0.bias"}
    box = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2))
    refused("^teacher: a projection of its embedding is trained in one process", teacher.prepare, box, {"teacher": {}})


def test_a_forward_pass_does_not_ask_the_projection():
    """Class centres and checks leave its batch statistics alone; the box asks for it in training."""
    teacher = make_teacher(projection=PROJECTION)
    seen = record(teacher, "projection")
    teacher(IMAGES)
    teacher.fit_centres(batches())
    assert not seen
    embedding = teacher.embed(IMAGES)
    teacher.secondary_forward({"embedding": {"output": embedding}})
    assert seen["projection"].requires_grad
    linear = functional.linear(embedding, *teacher.projection.parameters())
    torch.testing.assert_close(seen["projection"], functional.batch_norm(linear, None, None, training=True, eps=1e-4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_teacher_on_the_gpu_student_on_the_cpu():
    teacher = make_teacher(teacher_device="cuda:0", device=torch.device("cpu"))
    teacher.fit_centres(batches())
    assert teacher(IMAGES).device.type == "cpu"


def test_a_teacher_held_in_bf16_answers_in_float32_and_nearly_the_same():
    plain, half = fitted(), fitted(teacher_dtype="bf16")
    assert {p.dtype for p in half.teacher.parameters()} == {torch.bfloat16}
    got, want = half.answers(IMAGES), plain.answers(IMAGES)
    assert got.features is want.features is None
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.05)
    assert half.local_classifier.centres.dtype == torch.float32


def test_answers_that_are_given_are_not_computed():
    teacher = fitted()
    answers = teacher.answers(IMAGES)
    seen, calls = record(teacher, "embedding", "local_classifier"), []
    teacher.teacher.register_forward_hook(lambda *_: calls.append(1))
    teacher.answer_with(Answers(*(2 * value for value in answers[:3])))
    assert torch.equal(teacher(IMAGES), 2 * answers.logits)
    assert torch.equal(seen["embedding"], 2 * answers.embedding)
    assert torch.equal(seen["local_classifier"], 2 * answers.local_classifier)
    assert calls == []
    assert torch.equal(teacher(IMAGES), answers.logits)  # once only
    assert calls == [1]


def test_local_features_are_read_beside_the_embedding():
    teacher = fitted(local_classifier="probe", local_features=["layer1", "layer2"])
    answers = teacher.answers(IMAGES)
    taken = record(teacher.teacher, "layer1", "layer2")
    teacher.embed(IMAGES)
    torch.testing.assert_close(answers.features, torch.cat([pooled(taken[x], x) for x in ("layer1", "layer2")], dim=1))
    seen = record(teacher, "local_classifier")
    for given in (answers._replace(local_classifier=None), None):  # as a bank gives them, and computed
        teacher.answer_with(given)
        teacher(IMAGES)
        torch.testing.assert_close(seen.pop("local_classifier"), answers.local_classifier)


@pytest.mark.parametrize(("asked", "kind"), [(None, "probe"), ("centres", "centres")])
def test_a_stage_suggests_a_local_classifier_where_the_keyword_leaves_it_open(asked, kind):
    teacher = make_teacher(local_classifier=asked)
    teacher.suggest_local_classifier("probe")
    assert teacher.local_classifier.kind == kind


def test_the_training_set_tells_the_shared_classes():
    teacher = fitted(overlapping(), of=4, local_classifier="probe")
    assert teacher.local_classifier.teacher_labels.tolist() == [2, 3, -1, -1]
    answers = teacher.answers(IMAGES)
    logits = teacher.local_classifier.logits
    torch.testing.assert_close(answers.local_classifier, logits(Answers(answers.embedding, logits=answers.logits)))
    assert not torch.equal(answers.local_classifier, logits(Answers(answers.embedding)))


def test_shared_classes_can_be_written_down_or_switched_off_and_those_of_another_teacher_are_not_believed(caplog):
    written = fitted(overlapping(), of=1000, local_classifier="probe", class_map={0: 281})
    assert written.local_classifier.teacher_labels.tolist() == [281, -1, -1, -1]
    off = fitted(overlapping(), of=3, local_classifier="probe", class_map=None)
    assert off.local_classifier.teacher_labels.numel() == 0
    assert "class_map" not in caplog.text
    other = fitted(overlapping(), of=3, local_classifier="probe")
    assert "of a teacher with 4 classes, this one has 3, so no class is shared" in caplog.text
    assert torch.equal(other.answers(IMAGES).local_classifier, off.answers(IMAGES).local_classifier)


def test_the_number_of_logits_tells_of_a_model_that_does_not():
    """And a map that is not believed for it is no reason to fit again."""
    net = TinyNet(num_classes=6)  # without an attribute num_classes
    first, second = (RefilledTeacher(net, embedding="pool", local_classifier="probe") for _ in range(2))
    for teacher in (first, second):
        teacher.prepare(box_over(overlapping()), {})
        assert teacher.class_map.labels == [2, 3, None, None]
    first.fit_centres(batches())
    second.adopt_centres(first)
    for teacher in (first, second):
        assert teacher.class_map.labels is None
        assert teacher.local_classifier.is_ready
        assert teacher.local_classifier.teacher_labels.numel() == 0


def test_a_class_map_that_does_not_fit_or_is_not_used_is_told(caplog):
    refused(r"^teacher\.auxiliary_model_wrapper\.kwargs\.class_map: the student: no", fitted, class_map={"cat": 1})
    fitted(class_map={0: 1})
    assert "class_map: not used" in caplog.text


def test_names_that_the_weights_were_trained_with_and_those_given():
    def relation(**kwargs):
        teacher = make_teacher(4, **kwargs)
        teacher.teacher.trained_classes = list("abcd")
        dataset = TinyImages(classes=4)
        dataset.classes = list("abdc")
        teacher.prepare(box_over(dataset), {})
        return teacher.class_map.relation

    assert relation() == "reordered"
    assert relation(teacher_classes=list("abdc")) == "same"


ADOPTING = {"preprocessing": "data", "local_classifier": "probe", "class_map": {0: 1}}
OTHER = [("embedding", "global_pool"), ("num_classes", 4), ("input_size", 64), ("local_features", ["layer1"])]
OTHER += [("local_classifier", "centres"), ("class_map", {0: 2}), ("class_map", None), ("class_prior", "training")]
OTHER += [("teacher_model", make_teacher().teacher)]


@pytest.mark.parametrize("changes", [{}, {"mean": [0.5], "std": [1]}, *({key: value} for key, value in OTHER)])
def test_a_local_classifier_is_adopted_only_where_it_would_be_fitted_the_same(changes):
    first = fitted(**ADOPTING)
    other = RefilledTeacher(**{"teacher_model": first.teacher, **ADOPTING, **changes})
    other.prepare(box_over(TinyImages(classes=4)), {})
    other.adopt_centres(first)
    assert other.local_classifier.is_ready == (not changes)
    if not changes:
        assert torch.equal(other.answers(IMAGES).local_classifier, first.answers(IMAGES).local_classifier)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_the_teacher_sees_its_own_normalisation_and_size(name, caplog):
    """As if timm's own evaluation transform had made the images, up to the rounding of 8-bit pixels."""
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    model = timm_model(name, num_classes=5)
    cfg, size = model.pretrained_cfg, model.pretrained_cfg["input_size"][1:]
    dataset = normalised((0.2, 0.3, 0.4), (0.3, 0.3, 0.3))
    teacher = RefilledTeacher(model)
    teacher.prepare(box_over(dataset), {})
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    for _ in range(2):
        got = teacher(torch.stack([dataset.transform(image) for image in pixels]))
    resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC, antialias=True)
    own = transforms.Compose([transforms.ToTensor(), resize, transforms.Normalize(cfg["mean"], cfg["std"])])
    with torch.no_grad():
        want = model(torch.stack([own(image) for image in pixels]))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert caplog.text.count(f"resized from 48 × 48 to {size[0]} × {size[1]} pixels") == 1


def test_settings_go_before_what_is_known():
    teacher = make_teacher(mean=[0.1, 0.1, 0.1], std=0.5, input_size=[40, 48], data_mean=0, data_std=1)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = teacher.teacher(functional.interpolate((x - 0.1) / 0.5, (40, 48), mode="bicubic", antialias=True))
    torch.testing.assert_close(teacher(x), want, rtol=1e-4, atol=1e-4)
    teacher.prepare(box_over(normalised((0.9,), (9.0,))), {})
    torch.testing.assert_close(teacher(x), want, rtol=1e-4, atol=1e-4)


def test_channels_that_differ_are_refused():
    prepare, box = make_teacher(preprocessing="pretrained").prepare, box_over(normalised((0.5, 0.5), (0.5, 0.5)))
    refused(r"^teacher\.auxiliary_model_wrapper: the teacher takes images of 3 channels", prepare, box, {})
    refused(r"images of 3 channels, the data has 1; its kwargs\.in_chans", make_teacher(), IMAGES[:, :1])


KWARGS = r"\.kwargs\."


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preprocessing": "dta"}, KWARGS + "preprocessing: 'dta' is unknown; did you mean 'data'"),
        ({"embedding": "embeding"}, KWARGS + "embedding: .* no module 'embeding'; did you mean 'embedding'"),
        ({"embedding_io": "outputs"}, KWARGS + "embedding_io: 'outputs' is unknown; did you mean 'output'"),
        ({"local_classifier": "centers"}, KWARGS + "local_classifier: 'centers' is unknown; did you mean 'centres'"),
        ({"class_prior": "trainin"}, KWARGS + "class_prior: 'trainin' is unknown; did you mean 'training'"),
        ({"local_features": ["layer9"]}, KWARGS + "local_features: .* no module 'layer9'; did you mean"),
        ({"local_features": ["embedding"]}, KWARGS + "local_features: 'embedding' is the embedding"),
        ({"teacher_dtype": "bf61"}, KWARGS + "teacher_dtype: 'bf61' is unknown; did you mean 'bf16'"),
        ({"teacher_dtype": "fp16"}, KWARGS + "teacher_dtype: 'fp16' needs a GPU"),
        ({"teacher_device": "cuda:99"}, KWARGS + "teacher_device: there is no device 'cuda:99' here"),
        ({"data_mean": 0.5}, KWARGS + "data_mean: goes with data_std"),
        ({"preprocessing": "pretrained", "data_mean": [0, 0, 0, 0], "data_std": 1}, ": the teacher takes images of 3"),
        *(({"num_classes": value}, KWARGS + "num_classes must be a whole number") for value in ("x", 0, 1.5, True)),
    ],
)
def test_settings_that_do_not_exist_are_refused(kwargs, message):
    refused(f"^auxiliary_model_wrapper{message}", make_teacher, **kwargs)


def test_an_embedding_that_cannot_be_read():
    refused(r"not \[B, D\] or \[B, D, 1, 1\]", make_teacher(embedding="layer2").embed, IMAGES)
    message = "ResNet has no module 'embedding', as timm_model's .* are .*'avgpool'"
    refused(message, RefilledTeacher, torchvision.models.resnet18())
