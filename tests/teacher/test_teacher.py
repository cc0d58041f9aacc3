"""The teacher's invariants, whatever a box does to it."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchdistill.models.classification.resnet import resnet20
from torchvision import transforms

from gkd_plugin import ConfigError
from gkd_plugin.data import ArrayImages, overlap_subset
from gkd_plugin.functional import class_centres, fit_discriminant
from gkd_plugin.models import timm_model
from gkd_plugin.teacher import Answers, RefilledTeacher
from gkd_plugin.teacher.local_classifier import KINDS, Evidence
from gkd_plugin.teacher.local_features import pooled
from tests.fakes import TinyImages, TinyNet


def make_teacher(num_classes=5, **kwargs):
    torch.manual_seed(0)
    return RefilledTeacher(timm_model("test_resnet", num_classes=num_classes), **{"preprocessing": "data", **kwargs})


def batches(count=3, classes=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % classes) for _ in range(count)]


def state(teacher):
    return copy.deepcopy(teacher.teacher.state_dict())


def test_train_does_not_leave_eval_mode():
    teacher = make_teacher()
    assert teacher.train() is teacher
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())


def test_parameters_stay_frozen():
    teacher = make_teacher()
    teacher.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_batch_norm_statistics_never_move_even_if_the_inner_model_was_put_in_train_mode():
    teacher = make_teacher()
    before = state(teacher)
    teacher.teacher.train()
    for images, _ in batches():
        teacher(images)
    after = teacher.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_gradient_flows():
    teacher = make_teacher()
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    assert not teacher(images).requires_grad


def test_output_is_the_teachers_own():
    teacher = make_teacher()
    images = batches()[0][0]
    with torch.no_grad():
        assert torch.equal(teacher(images), teacher.teacher(images))


def test_hook_paths():
    teacher = make_teacher()
    seen = {}
    for path in ("embedding", "local_classifier"):
        teacher.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
    images = batches()[0][0]
    teacher(images)
    assert "local_classifier" not in seen  # its centres are not known yet
    teacher.fit_centres(batches())
    teacher(images)
    assert seen["embedding"].shape == (8, teacher.teacher.head_hidden_size)
    assert seen["local_classifier"].shape == (8, 4)
    torch.testing.assert_close(seen["local_classifier"], seen["embedding"] @ teacher.local_classifier.centres.T)


def test_centres_are_those_of_the_embeddings():
    teacher = make_teacher()
    teacher.fit_centres(batches())
    want = class_centres([(teacher.embed(images), labels) for images, labels in batches()])
    torch.testing.assert_close(teacher.local_classifier.centres, want)


def test_centres_are_saved_and_loaded():
    teacher = make_teacher()
    teacher.fit_centres(batches())
    fresh = make_teacher()
    fresh.load_state_dict(teacher.state_dict())
    assert torch.equal(fresh.local_classifier.centres, teacher.local_classifier.centres)
    assert fresh.local_classifier.is_ready


def test_the_number_of_classes_can_be_given():
    teacher = make_teacher(num_classes=5)
    teacher.num_classes = 6
    with pytest.raises(ConfigError, match="class centres: no sample of class 4, 5"):
        teacher.fit_centres(batches())


def test_a_model_that_is_not_timms_names_its_embedding():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    teacher = RefilledTeacher(net, embedding="1")
    assert teacher.embed(torch.randn(2, 3, 8, 8)).shape == (2, 6)


def test_a_path_that_does_not_exist_offers_the_nearest():
    with pytest.raises(ConfigError, match="has no module 'embeding'; did you mean 'embedding'"):
        make_teacher(embedding="embeding")


def test_own_device_is_kept_when_the_box_moves_the_teacher():
    teacher = make_teacher(teacher_device="meta", device=torch.device("cpu"))
    assert teacher.device.type == "meta"
    teacher.to("cpu")
    assert {p.device.type for p in teacher.parameters()} == {"meta"}
    assert {b.device.type for b in teacher.buffers()} == {"meta"}


PROJECTION = {"kind": "standardised", "in_features": 96, "out_features": 6}


def test_a_projection_is_all_that_trains():
    teacher = make_teacher(projection=PROJECTION)
    for mode in (True, False):
        teacher.train(mode).requires_grad_(True)
        assert teacher.projection.training
        assert not teacher.training
        assert not any(module.training for module in teacher.teacher.modules())
        trained = {name for name, parameter in teacher.named_parameters() if parameter.requires_grad}
        assert trained == {"projection.layers.0.weight", "projection.layers.0.bias"}


def test_a_forward_pass_does_not_ask_the_projection():
    """Class centres and checks leave its batch statistics alone; the box asks for it in training."""
    teacher, (images, _) = make_teacher(projection=PROJECTION), batches()[0]
    seen = []
    teacher.projection.register_forward_hook(lambda _, args, output: seen.append(output))
    teacher(images)
    teacher.fit_centres(batches())
    assert seen == []
    embedding = teacher.embed(images)
    teacher.secondary_forward({"embedding": {"output": embedding}})
    (output,) = seen
    assert output.requires_grad
    linear = functional.linear(embedding, *teacher.projection.parameters())
    assert torch.allclose(output, functional.batch_norm(linear, None, None, training=True, eps=1e-4))


def test_a_projection_stays_with_the_student_where_the_teacher_has_its_own_device():
    teacher = make_teacher(teacher_device="meta", device=torch.device("cpu"), projection=PROJECTION)
    teacher.double()
    assert {p.dtype for p in teacher.teacher.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.projection.parameters()} == {torch.float64}


def test_a_projection_is_for_one_process():
    teacher = make_teacher(projection=PROJECTION)
    box = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2))
    with pytest.raises(ConfigError, match=r"^teacher: a projection of its embedding is trained in one process"):
        teacher.prepare(box, {"teacher": {}})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_teacher_on_the_gpu_student_on_the_cpu():
    teacher = make_teacher(teacher_device="cuda:0", device=torch.device("cpu"))
    teacher.fit_centres(batches())
    assert teacher(batches()[0][0]).device.type == "cpu"


def test_centres_are_adopted_only_from_the_same_space():
    first = make_teacher()
    first.fit_centres(batches())
    same = RefilledTeacher(first.teacher, preprocessing="data")
    same.adopt_centres(first)
    assert torch.equal(same.local_classifier.centres, first.local_classifier.centres)
    for changes in ({"embedding": "global_pool"}, {"num_classes": 4}, {"input_size": 64}, {"mean": [0.5], "std": [1]}):
        other = RefilledTeacher(first.teacher, **{"preprocessing": "data", **changes})
        other.adopt_centres(first)
        assert not other.local_classifier.is_ready


def fitted(own=None, of=5, **kwargs):
    """A teacher with ``of`` classes, fitted to four classes."""
    teacher = make_teacher(of, **kwargs)
    box = SimpleNamespace(train_data_loader=SimpleNamespace(dataset=own or TinyImages(classes=4)))
    teacher.prepare(box, {})
    teacher.fit_centres(batches())
    return teacher


def test_a_calibrated_local_classifier_is_asked_for_by_keyword_or_suggested():
    suggested, refusing = make_teacher(), make_teacher(local_classifier="centres")
    for teacher in (suggested, refusing):
        teacher.suggest_local_classifier("discriminant")
    assert suggested.local_classifier.kind == "discriminant"
    assert refusing.local_classifier.kind == "centres"
    asked = fitted(local_classifier="discriminant")
    embedding, labels = torch.cat([asked.embed(x) for x, _ in batches()]), torch.cat([y for _, y in batches()])
    fit = fit_discriminant(embedding, labels, 4)
    torch.testing.assert_close(asked.answers(batches()[0][0]).local_classifier, embedding[:8] @ fit.weight.T + fit.bias)


def test_the_training_set_tells_the_shared_classes():
    student = overlap_subset(TinyImages(classes=6), 4, "student", overlap=0.5)
    teacher = fitted(student, of=4, local_classifier="discriminant")
    assert teacher.local_classifier.teacher_labels.tolist() == [2, 3, -1, -1]
    images = batches()[0][0]
    own, embedding = teacher.teacher(images), teacher.embed(images)
    want = teacher.local_classifier.logits(Evidence(embedding, None, own))
    assert not torch.equal(want, teacher.local_classifier.logits(Evidence(embedding, None, None)))
    torch.testing.assert_close(teacher.answers(images).local_classifier, want)
    teacher.answer_with(Answers(embedding, None, own))  # as a bank gives them
    assert teacher.local_classifier.is_ready
    recorded = []
    teacher.local_classifier.register_forward_hook(lambda module, given, output: recorded.append(output))
    teacher(images)
    torch.testing.assert_close(recorded[0], want)


def test_shared_classes_can_be_written_down_or_switched_off():
    student = overlap_subset(TinyImages(classes=6), 4, "student", overlap=0.5)
    written = fitted(student, local_classifier="discriminant", class_map={0: 1})
    assert written.local_classifier.teacher_labels.tolist() == [1, -1, -1, -1]
    assert fitted(student, local_classifier="discriminant", class_map=None).local_classifier.known is None


@pytest.mark.parametrize("of", [3, 1000])
def test_a_training_set_that_speaks_of_another_teacher_is_not_believed(of, caplog):
    student = overlap_subset(TinyImages(classes=6), 4, "student", overlap=0.5)
    teacher = fitted(student, of, local_classifier="discriminant")
    (line,) = [record.getMessage() for record in caplog.records if "class_map" in record.getMessage()]
    assert line.startswith("class_map: the training set's shared classes are those of a teacher with 4 classes")
    assert f"this one has {of}, so none is taken as shared" in line
    plain, images = fitted(student, of, local_classifier="discriminant", class_map=None), batches()[0][0]
    assert torch.equal(teacher.answers(images).local_classifier, plain.answers(images).local_classifier)


def test_a_written_class_map_is_believed_whatever_the_training_set_says(caplog):
    student = overlap_subset(TinyImages(classes=6), 4, "student", overlap=0.5)
    written = fitted(student, of=1000, local_classifier="discriminant", class_map={0: 281})
    assert written.local_classifier.teacher_labels.tolist() == [281, -1, -1, -1]
    assert "class_map" not in caplog.text


def test_a_map_that_is_not_believed_is_no_reason_to_fit_again():
    student = overlap_subset(TinyImages(classes=6), 4, "student", overlap=0.5)
    first = fitted(student, of=1000, local_classifier="discriminant")
    second = RefilledTeacher(first.teacher, preprocessing="data", local_classifier="discriminant")
    second.prepare(SimpleNamespace(train_data_loader=SimpleNamespace(dataset=student)), {})
    second.adopt_centres(first)
    assert second.local_classifier.is_ready
    assert second.local_classifier.shared is None


def test_a_class_map_that_does_not_fit_is_told_with_its_key():
    with pytest.raises(ConfigError, match=r"^teacher\.auxiliary_model_wrapper\.kwargs\.class_map: the student has no"):
        fitted(class_map={"cat": 1})
    with pytest.raises(ConfigError, match=r"kwargs\.class_map: names class 9 of a teacher with 5 classes \(0 … 4\)$"):
        fitted(local_classifier="discriminant", class_map={0: 9})


def test_a_class_map_that_is_not_used_is_said(caplog):
    fitted(class_map={0: 1})
    assert "class_map: not used, the local classifier is of the kind 'centres'" in caplog.text


def test_another_fit_forgets_the_class_map_of_the_last():
    teacher = fitted(local_classifier="discriminant", class_map={0: 1})
    teacher.local_classifier.known = None
    teacher.fit_centres(batches())
    fresh = fitted(local_classifier="discriminant", class_map=None)
    images = batches()[0][0]
    torch.testing.assert_close(teacher.answers(images).local_classifier, fresh.answers(images).local_classifier)


def test_classifiers_are_adopted_with_their_kind():
    first = fitted(local_classifier="discriminant", class_map={0: 1})
    same, other = (RefilledTeacher(first.teacher, preprocessing="data", local_classifier=kind) for kind in KINDS[::-1])
    for teacher in (same, other):
        teacher.local_classifier.known = [1, None, None, None]
        teacher.adopt_centres(first)
    assert torch.equal(same.local_classifier.shared_factors, first.local_classifier.shared_factors)
    assert not other.local_classifier.is_ready


def test_an_embedding_that_is_not_pooled_is_refused():
    with pytest.raises(ConfigError, match=r"not \[B, D\] or \[B, D, 1, 1\]"):
        make_teacher(embedding="layer2").embed(batches()[0][0])


def transform_of(mean, std):
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


def pil_images(count=4, size=48):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


class FakeBox:
    """As much of torchdistill's box as a teacher looks at."""

    def __init__(self, transform):
        dataset = ArrayImages(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], transform=transform)
        self.train_data_loader = DataLoader(dataset)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_the_teacher_sees_its_own_normalisation_and_size(name, caplog):
    """As if timm's own evaluation transform had made the images, up to the rounding of 8-bit pixels."""
    torch.manual_seed(0)
    model = timm_model(name, num_classes=5)
    cfg = model.pretrained_cfg
    size = cfg["input_size"][1:]
    student = transform_of((0.2, 0.3, 0.4), (0.3, 0.3, 0.3))
    teacher = RefilledTeacher(model)
    teacher.prepare(FakeBox(student), {})
    images = pil_images()
    with caplog.at_level(logging.INFO):
        got = teacher(torch.stack([student(image) for image in images]))
        teacher(torch.stack([student(image) for image in images]))
    own = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.Normalize(cfg["mean"], cfg["std"]),
        ]
    )
    with torch.no_grad():
        want = model(torch.stack([own(image) for image in images]))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert caplog.text.count(f"resized from 48 × 48 to {size[0]} × {size[1]} pixels") == 1


def test_settings_go_before_what_is_known():
    teacher = make_teacher(mean=[0.1, 0.1, 0.1], std=0.5, input_size=[40, 48], data_mean=0, data_std=1)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = teacher.teacher(functional.interpolate((x - 0.1) / 0.5, (40, 48), mode="bicubic", antialias=True))
    torch.testing.assert_close(teacher(x), want, rtol=1e-4, atol=1e-4)
    teacher.prepare(FakeBox(transform_of((0.9,), (9.0,))), {})
    torch.testing.assert_close(teacher(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 45, 96])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224", "test_efficientnet"])
def test_any_size_reaches_fixed_and_free_size_models(name, size):
    with torch.device("meta"):
        teacher = RefilledTeacher(timm_model(name, num_classes=5))
        assert teacher(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preprocessing": "dta"}, "kwargs.preprocessing: there is no 'dta'; did you mean 'data'"),
        ({"std": 0}, "kwargs.std: must be a number above 0 for each channel"),
        ({"input_size": "big"}, "kwargs.input_size: must be a number of pixels"),
        ({"embedding_io": "outputs"}, "kwargs.embedding_io: there is no 'outputs'; did you mean 'output'"),
        ({"teacher_dtype": "bf61"}, "kwargs.teacher_dtype: there is no 'bf61'; did you mean 'bf16'"),
        ({"teacher_dtype": "fp16"}, "kwargs.teacher_dtype: 'fp16' needs a GPU"),
    ],
)
def test_settings_that_do_not_exist_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=f"auxiliary_model_wrapper.{message}"):
        make_teacher(**kwargs)


def test_channels_that_differ_are_refused():
    with pytest.raises(ConfigError, match=r"teacher.auxiliary_model_wrapper: the teacher takes images of 3 channels"):
        make_teacher(preprocessing="pretrained").prepare(FakeBox(transform_of((0.5, 0.5), (0.5, 0.5))), {})


def test_the_input_of_a_module_can_be_the_embedding():
    net = TinyNet()
    images = batches()[0][0]
    given_in = RefilledTeacher(net, embedding="fc", embedding_io="input").embed(images)
    torch.testing.assert_close(given_in, RefilledTeacher(net, embedding="pool").embed(images))


@pytest.mark.parametrize(
    ("make", "path", "io", "size"),
    [
        (torchvision.models.resnet18, "avgpool", "output", 64),
        (torchvision.models.vit_b_32, "heads", "input", 224),
        (torchvision.models.mobilenet_v3_small, "classifier", "input", 64),
        (torchvision.models.convnext_tiny, "classifier.2", "input", 64),
        (resnet20, "avgpool", "output", 32),
    ],
)
def test_torchvisions_and_torchdistills_models_by_hook_path(make, path, io, size):
    with torch.device("meta"):
        teacher = RefilledTeacher(make(num_classes=3), embedding=path, embedding_io=io)
        x = torch.zeros(2, 3, size, size)
        assert teacher.embed(x).shape[0] == 2
        assert teacher(x).shape == (2, 3)


def test_a_teacher_held_in_bf16_answers_in_float32_and_nearly_the_same():
    images = batches()[0][0]
    plain, half = make_teacher(), make_teacher(teacher_dtype="bf16")
    for teacher in (plain, half):
        teacher.fit_centres(batches())
    assert {p.dtype for p in half.teacher.parameters()} == {torch.bfloat16}
    got, want = half.answers(images), plain.answers(images)
    assert got.features is want.features is None
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.05)
    assert half.local_classifier.centres.dtype == torch.float32


def test_two_wrappers_of_one_teacher_share_one_hook_and_one_device():
    first = make_teacher()
    second = RefilledTeacher(first.teacher, preprocessing="data")
    images = batches()[0][0]
    assert torch.equal(first.embed(images), second.embed(images))
    assert len(first.teacher.embedding._forward_hooks) == 1


def test_answers_that_are_given_are_not_computed():
    teacher = make_teacher()
    teacher.fit_centres(batches())
    images = batches()[0][0]
    answers = teacher.answers(images)
    seen = {}
    for path in ("embedding", "local_classifier"):
        teacher.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
    calls = []
    teacher.teacher.register_forward_hook(lambda *_: calls.append(1))
    teacher.answer_with(Answers(*(2 * value for value in answers[:3])))
    assert torch.equal(teacher(images), 2 * answers.logits)
    assert torch.equal(seen["embedding"], 2 * answers.embedding)
    assert torch.equal(seen["local_classifier"], 2 * answers.local_classifier)
    assert calls == []
    assert torch.equal(teacher(images), answers.logits)  # once only
    assert calls == [1]


def test_local_features_are_read_beside_the_embedding():
    teacher = make_teacher(local_classifier="discriminant", local_features=["layer1", "layer2"])
    teacher.fit_centres(batches())
    images = batches()[0][0]
    answers = teacher.answers(images)
    taken = {}
    for path in ("layer1", "layer2"):
        module = teacher.teacher.get_submodule(path)
        module.register_forward_hook(lambda m, a, out, path=path: taken.update({path: pooled(out, path)}))
    teacher.embed(images)
    torch.testing.assert_close(answers.features, torch.cat([taken["layer1"], taken["layer2"]], dim=1))
    assert teacher.local_classifier.weight.shape[1] == answers.embedding.shape[1] + answers.features.shape[1]
    seen = []
    teacher.local_classifier.register_forward_hook(lambda module, given, output: seen.append(output))
    teacher.answer_with(answers._replace(local_classifier=None))  # as a bank gives them
    teacher(images)
    teacher(images)
    for output in seen:
        torch.testing.assert_close(output, answers.local_classifier)
    assert teacher.settings() != make_teacher(local_classifier="discriminant").settings()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["layer9"], r"auxiliary_model_wrapper\.kwargs\.local_features: .* has no module 'layer9'; did you mean"),
        (["embedding"], r"local_features: 'embedding' is the embedding, which is read already"),
    ],
)
def test_local_features_that_cannot_be_read(paths, message):
    with pytest.raises(ConfigError, match=message):
        make_teacher(local_features=paths)


def test_a_model_without_the_tap_is_told_to_name_its_embedding():
    with pytest.raises(
        ConfigError, match=r"ResNet has no module 'embedding', as timm_model's .* last ones are .*'avgpool'"
    ):
        RefilledTeacher(torchvision.models.resnet18())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data_mean": 0.5}, "kwargs.data_mean: goes with data_std; give both"),
        ({"teacher_device": "foo"}, "kwargs.teacher_device: there is no device 'foo'"),
        ({"teacher_device": "cuda:99"}, "kwargs.teacher_device: there is no device 'cuda:99' here"),
        ({"teacher_dtype": {"a": 1}}, r"kwargs.teacher_dtype: there is no \{'a': 1\}"),
        (
            {"preprocessing": "pretrained", "data_mean": [0, 0, 0, 0], "data_std": 1},
            ": the teacher takes images of 3 ch",
        ),
    ],
)
def test_settings_of_another_kind_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=f"^auxiliary_model_wrapper.?{message}"):
        make_teacher(**kwargs)


@pytest.mark.parametrize("value", ["x", 0, 1.5, True])
def test_the_number_of_classes_must_be_one(value):
    with pytest.raises(ConfigError, match=r"^auxiliary_model_wrapper\.kwargs\.num_classes: must be a whole number"):
        RefilledTeacher(timm_model("test_resnet"), num_classes=value)
