"""Misspelt module paths, images that a model cannot take, labels that do not fit, stages that could learn nothing."""

import copy
import logging

import numpy as np
import pytest
import torch
from torchvision import transforms

from gkd_plugin.config.stages import stages_of
from gkd_plugin.data import ArrayImages, image_transform, with_unlabelled
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.checks import check_data, check_forward, check_hooks, check_trained_classes, first_images
from gkd_plugin.runner.parts import build_test_loader
from tests.data.fakes import counted
from tests.fakes import TinyImages, TinyNet, cross_entropy, loader, stage
from tests.runner.fakes import cpu, refused

KD = {"student_module_path": ".", "student_module_io": "output", "teacher_module_io": "output", "temperature": 1.0}


@pytest.fixture(scope="module")
def models():
    return timm_model("test_resnet", num_classes=7), timm_model("test_resnet", num_classes=4)


def stages(*sections):
    return stages_of({"train": {f"stage{number}": section for number, section in enumerate(sections, 1)}})


def both(**changes):
    """Both stages of ReFilled, with sections of the second updated."""
    second = stage("classifier")
    for name, change in changes.items():
        second[name] = {**second[name], **change}
    return stages(stage("embedding"), second)


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
UNFINISHED = wrapped("projected_student", projection={"kind": "linear"})
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
        ({"student": UNFINISHED}, f"student.{KWARGS}.projection.in_features", ["missing"]),
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
        check_hooks(both(**changes), *models)
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
    given = both(**changes)
    before = copy.deepcopy(given)
    check_hooks(given, *models)
    assert given == before


def test_a_teacher_without_the_wrapper(models):
    section = stage("embedding")
    section["teacher"]["auxiliary_model_wrapper"] = {}
    check_hooks(stages_of({"train": section}), *models)
    section["teacher"]["forward_hook"]["output"] = ["local_classifier"]
    refused("ResNet has no module 'local_classifier'", check_hooks, stages_of({"train": section}), *models)


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
        message = rf"^train\.criterion: {name} reads the teacher.*models\.teacher_model"
        refused(message, check_hooks, stages_of({"train": section}), None, TinyNet())


def refuses(images):
    raise ConfigError("channels")


def test_models_that_fit_leave_the_random_state_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = first_images("datasets.x", TinyImages())
    check_forward("models.model", torch.nn.Dropout(), images, cpu())
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(torch.get_rng_state(), before)


def images_of(channels, transform):
    shape = (2, 8, 8, 3) if channels == 3 else (2, 8, 8)
    return ArrayImages(np.zeros(shape, np.uint8), [0, 1], transform=transform)


@pytest.mark.parametrize(
    ("channels", "transform", "message"),
    [
        (1, None, "its first images cannot be made a batch: TypeError"),
        (1, image_transform(8, [0.5, 0.5], [0.5, 0.5]), "its first images cannot be made a batch: RuntimeError"),
        (3, image_transform(8, [0.5], [0.5]), r"mean \(0\.5,\) and std \(0\.5,\) normalise images of 3 channels"),
        (3, transforms.Compose([transforms.ToTensor(), refuses]), "channels$"),
    ],
)
def test_first_images_that_cannot_be_used(channels, transform, message):
    place = "" if message == "channels$" else r"datasets\.test: "
    refused(f"^{place}{message}", first_images, "datasets.test", images_of(channels, transform))


def test_first_images_that_are_not_normalised():
    assert first_images("datasets.test", images_of(3, transforms.ToTensor())).shape == (2, 3, 8, 8)


DEIT = timm_model("deit_tiny_patch16_224", num_classes=3, depth=1).eval()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (DEIT, r"cannot take images of shape \[2, 3, 32, 32\]: Input height.* \(its kwargs.img_size: 32 builds it"),
        (timm_model("test_resnet", num_classes=3, in_chans=1).eval(), r"cannot take .*1 channels?[^(]*$"),
        (refuses, "channels$"),  # what a model of ours says
    ],
)
def test_what_a_model_refuses_is_told_with_its_place(model, message):
    images, accelerator = first_images("datasets.x", TinyImages()), cpu()
    refused(rf"^models\.teacher_model: {message}", check_forward, "models.teacher_model", model, images, accelerator)


class Labels:
    def __init__(self, *targets, classes=None):
        self.targets = [*targets]
        if classes is not None:
            self.classes = list(classes)

    def __len__(self):
        return len(self.targets)


def named(*classes):
    return Labels(*range(len(classes)), *range(len(classes)), classes=classes)


EMBEDDING, CLASSIFIER, JOINT = (stages(stage(kind)) for kind in ("embedding", "classifier", "joint"))
CROSS_ENTROPY = stages(stage("embedding", criterion={"key": "WeightedSumLoss", "kwargs": None}))


def check(stages, num_classes=4, choice=None, **datasets):
    """Of the training set, unless others are given."""
    config = {"datasets": datasets, "train": choice or {}, "test": None}
    if "test" in datasets:
        config["test"] = {"test_data_loader": loader("test")}
    for name in ("val", "test"):
        datasets.setdefault(name, datasets["train"])
    check_data(config, "models.student_model", num_classes, stages)


PAIRS = Labels(0, 0, 1, 1, 2, 2, 3, 3)
BALANCED = {"key": "ClassBalancedBatchSampler", "kwargs": {"classes_per_batch": 2, "samples_per_class": 3}}


@pytest.mark.parametrize(
    ("train", "stages", "num_classes"),
    [
        *[(PAIRS, stages, 4) for stages in (EMBEDDING, CLASSIFIER, CROSS_ENTROPY, [*EMBEDDING, *CLASSIFIER])],
        (PAIRS, EMBEDDING, None),
        (Labels(2, 2, 2), CROSS_ENTROPY, None),  # what matters to one stage only
        (Labels(0, 0, 1, 1), EMBEDDING, 4),
        (Labels(0, 1, 2, 3), CLASSIFIER, 4),
        (Labels(0, 0, 1, 1), JOINT, 2),
        # balanced batches make pairs of one sample
        (Labels(0, 1), stages(stage("embedding", train_data_loader={**loader("train"), "batch_sampler": BALANCED})), 2),
    ],
)
def test_good_labels_pass(train, stages, num_classes, caplog):
    check(stages, num_classes, train=train)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("labels", "stages", "num_classes", "parts"),
    [
        ([], CROSS_ENTROPY, 4, ["no sample"]),
        ([0, 1, 4], CROSS_ENTROPY, 4, ["out of range", "label 4", "models.student_model has 4 classes (0 … 3)"]),
        ([0, -1], CROSS_ENTROPY, None, ["out of range", "label -1"]),
        ([2, 2, 2], EMBEDDING, 4, ["one class only", "'embedding'"]),
        ([0, 1, 2], EMBEDDING, 4, ["every class has one sample", "'embedding'"]),
        ([0, 1], JOINT, 2, ["every class has one sample", "'joint'"]),
        ([0, 0, 1, 1], CLASSIFIER, 4, ["class 2, 3", "'classifier'", "4 classes", "models.student_model.kwargs.num_c"]),
        ([0, 0, 1, 1], JOINT, 3, ["class 2", "'joint'", "3 classes"]),
        ([0, 0, 2, 2], EMBEDDING, 4, ["class 1", "'embedding'", "3 classes"]),
    ],
)
def test_bad_labels_are_one_line(labels, stages, num_classes, parts):
    with pytest.raises(ConfigError) as caught:
        check(stages, num_classes, train=Labels(*labels))
    message = str(caught.value)
    assert message.startswith("datasets.train: ")
    assert [part for part in parts if part not in message] == [], message


def test_what_is_told_of_labels_that_pass(caplog):
    caplog.set_level(logging.INFO)
    check(EMBEDDING, 2, train=Labels(0, 0, 1))
    unlabelled = torch.nn.ModuleList()  # has a length, and no `targets`
    check(EMBEDDING, 2, train=Labels(0, 0, 1, 1), val=unlabelled)
    check(CROSS_ENTROPY, 4, train=Labels(0, 0, 1, 1))
    single, unread, empty = (line for line in caplog.messages if "of the smallest" not in line)
    assert single == "datasets.train: classes [1] have one sample: they form no positive pair"
    assert unread.startswith("datasets.val: its labels are not checked")
    assert empty.startswith("datasets.train: no sample of class 2, 3: are there 4 classes (models.")


def test_every_dataset_that_is_used_is_checked():
    good = Labels(0, 0, 1, 1)
    check([*EMBEDDING, *CLASSIFIER], 2, train=good, test=Labels(1), unused=Labels(9))
    for name in ("train", "val", "test"):
        datasets = {"train": good, "test": good, name: Labels(0, 7)}
        refused(rf"^datasets\.{name}: class index out of range: label 7, but models", check, EMBEDDING, 2, **datasets)
    second = stage("classifier", train_data_loader=loader("few"))
    both_stages, datasets = stages(stage("embedding"), second), {"train": good, "few": Labels(0, 0)}
    refused(r"^datasets\.few: no sample of class 1: stage 'classifier'", check, both_stages, 2, **datasets)
    check(stages(stage("embedding", val_data_loader=None)), 2, train=good, val=Labels(9))


def test_a_set_is_compared_with_the_training_set_of_the_last_stage_that_it_measures():
    """Stage 'embedding' asks of labels only whether they are equal."""
    datasets = {"train": named("dog", "cat"), "few": named("cat", "dog"), "test": named("cat", "dog")}
    pairs = (("embedding", "train"), ("classifier", "few"))
    first, second = (stage(kind, train_data_loader=loader(name), val_data_loader=None) for kind, name in pairs)
    check(stages(first, second), 2, **datasets)
    message = r"^datasets\.test: class 'cat' has label 0, and label 1 in the training set, datasets\.train; both"
    refused(message, check, stages(second, first), 2, **datasets)


def test_classes_that_weights_were_trained_with(caplog):
    """A name of two classes is not compared."""
    where = "--checkpoint: s.pt"
    for trained, known in ((None, "ab"), ("ab", "ab"), ("aab", "aab"), ("ab", None)):
        data = Labels(0, 1, 2) if known is None else named(*known)
        check_trained_classes(trained and list(trained), "d/test", data, where)
        assert caplog.messages == []
    check_trained_classes(["x", "y"], "d/test", named(*"ab"), where)
    assert caplog.messages == [f"datasets.d/test: its classes ['a', 'b'] are none of the classes ['x', 'y'] of {where}"]
    message = r"^datasets\.d/test: class 'b' has label 1, and label 2 in --checkpoint: s\.pt; .*'c' missing.*classes_of"
    refused(message, check_trained_classes, ["a", "c", "b"], "d/test", named(*"ab"), where)


@pytest.mark.parametrize("lacking", ["ant", "bee", "cat"])
def test_a_class_without_a_test_image_is_told_by_its_name(lacking, caplog):
    names = ["ant", "bee", "cat"]
    test = Labels(*(label for label, name in enumerate(names) if name != lacking), classes=names)
    check(CLASSIFIER, 3, train=named(*names), test=test)
    (line,) = caplog.messages
    assert line.startswith(f"datasets.test: no sample of class '{lacking}' of the training set, datasets.train")


@pytest.mark.parametrize("classes", [["aunt", "bee", "cat"], ["bee", "beet", "cat"], ["bee", "cat", "cats"]])
def test_a_class_that_training_does_not_know_is_refused_with_the_nearest(classes):
    """Wherever the alphabet puts it. One without an image does not matter."""
    (unknown,) = set(classes) - {"ant", "bee", "cat"}
    message = f"datasets.test: class '{unknown}' is unknown in the training set, datasets.train; did you mean '{{}}'"
    nearest = {"aunt": "ant", "beet": "bee", "cats": "cat"}[unknown]
    train = named("ant", "bee", "cat")
    refused(message.format(nearest), check, CLASSIFIER, 3, train=train, test=named(*classes))
    check(CLASSIFIER, 3, train=train, test=Labels(0, 1, 2, classes=["ant", "bee", "cat", unknown]))


def test_the_work_on_names_grows_with_the_number_of_classes_and_not_with_its_square():
    name, data = counted(str), Labels(*range(400), classes=[f"class {label}" for label in range(400)])
    check_trained_classes([name(known) for known in data.classes], "d/test", data, "--checkpoint: s.pt")
    assert name.looks < 20 * 400


@pytest.mark.parametrize(("shared", "warned"), [(0, False), (1, False), (2, True), (60, True)])
def test_training_images_in_a_test_set_are_warned_of(shared, warned, caplog):
    rows = np.random.default_rng(0).integers(0, 255, (120, 4, 4, 3), dtype=np.uint8)
    train = ArrayImages(rows[:60], [index % 2 for index in range(60)])
    test = ArrayImages(rows[60 - shared : 120 - shared], [index % 2 for index in range(60)])
    check(CLASSIFIER, 2, train=train, test=test)
    line = f"datasets.test: {shared} of its 60 images are training images too (datasets.train)"
    assert (line in caplog.messages) == warned


def test_training_data_is_no_test_set_and_a_validation_set_only_with_a_warning(caplog):
    check(stages(stage("classifier", val_data_loader=loader("train"))), train=TinyImages())
    assert "datasets.train: validation on images that are trained on" in caplog.text
    config = {"datasets": {"train": TinyImages(), "val": TinyImages()}, "test": {"test_data_loader": loader("train")}}
    refused("^test.test_data_loader.dataset_id: 'train' is trained on", check_data, config, "student", 4, CLASSIFIER)


def test_no_sample_is_left_out_of_an_accuracy_and_not_all_of_training():
    """TinyImages has 24 samples."""
    cases = (
        ("train", 24, None),
        ("train", 10, None),
        ("train", 25, 24),
        ("val", 12, None),
        ("val", 10, 4),
        ("test", 7, 3),
    )
    for name, size, dropped in cases:
        dropping = {**loader(name), "kwargs": {"batch_size": size, "drop_last": True}}
        section = stages(stage("classifier", **({f"{name}_data_loader": dropping} if name != "test" else {})))
        config = {"datasets": {key: TinyImages(seed=seed) for seed, key in enumerate(("train", "val", "test"))}}
        config |= {"train": {}, "test": {"test_data_loader": dropping if name == "test" else loader("test")}}
        checked = (build_test_loader, config, cpu()) if name == "test" else (check_data, config, "student", 4, section)
        if dropped is None:
            checked[0](*checked[1:])
        else:
            path = "test.test" if name == "test" else f"train.stage1.{name}"
            refused(rf"^{path}_data_loader\.kwargs\.drop_last: True leaves out {dropped} of the 24 samples", *checked)


def test_the_log_says_what_every_set_holds(caplog):
    caplog.set_level(logging.INFO)
    train = Labels(0, 0, 1, 2, 2, 2, classes=["ant", "bee", "cat"])
    check(CLASSIFIER, 3, train=with_unlabelled(train, TinyImages(3, 2)), test=train)
    check(CLASSIFIER, 4, train=TinyImages(4, 2), test=Labels(0, 0, 1, classes=["ant", "bee", "cat", "dog"]))
    assert "datasets.test: 3 samples of 4 classes, 0 of the smallest (cat)" in caplog.messages
    assert "datasets.train: 8 samples of 4 classes, 2 of the smallest (0)" in caplog.messages
    sizes = "6 samples of 3 classes, 1 of the smallest (bee)"
    assert f"datasets.test: {sizes}" in caplog.messages
    assert f"datasets.train: {sizes}; 6 without a label" in caplog.messages


LOSS = {"num_negative_samples": 6, "output_size": 24, "num_samples": 24}
WRAPPER = {"key": "CRDDatasetWrapper", "kwargs": {"num_negative_samples": 6, "mode": "exact", "ratio": 1.0}}


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({}, None, None),
        ({"output_size": 30}, None, None),
        ({"wrapper": {"key": "Mine"}}, None, None),
        ({"wrapper": None}, "train_data_loader.dataset_wrapper", "missing; CRDLoss needs 'CRDDatasetWrapper'"),
        ({"num_negative_samples": 7}, "criterion.*.crd.criterion.kwargs.num_negative_samples", "7 given, .* draws 6$"),
        ({"output_size": 23}, "criterion.*.crd.criterion.kwargs.output_size", "23 given, .* 24 training samples$"),
    ],
)
def test_numbers_of_crd(given, path, message):
    given = {"wrapper": WRAPPER, **LOSS, **given}
    data = {**loader("train"), "dataset_wrapper": given.pop("wrapper")}
    crd = {"criterion": {"key": "CRDLoss", "kwargs": given}, "weight": 1.0}
    criterion = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy(), "crd": crd}}}
    section = stages(stage("embedding", criterion=criterion, train_data_loader=data))
    if message is None:
        check(section, train=TinyImages())
    else:
        refused(rf"^train\.stage1\.{path}: {message}", check, section, train=TinyImages())
    if message is None and data["dataset_wrapper"] == WRAPPER:
        lacks = r"^datasets\.train: has images without labels, which CRDDatasetWrapper takes to be of the last class"
        refused(lacks, check, section, train=with_unlabelled(TinyImages(), TinyImages()))


@pytest.mark.parametrize("choice", [{"keep": "best"}, {"patience": 3}, {"keep": "last", "patience": None}])
@pytest.mark.parametrize("shared", [0, 30])
def test_nothing_is_chosen_on_test_images(choice, shared):
    rows = np.random.default_rng(0).integers(0, 255, (180, 4, 4, 3), dtype=np.uint8)
    parts = (rows[:60], rows[60:120], rows[120 - shared : 180 - shared])
    train, val, test = (ArrayImages(part, [index % 2 for index in range(60)]) for part in parts)
    if shared and choice.get("keep") != "last":
        message = rf"^train\.{next(iter(choice))}: .*datasets\.val, has images of the test set"
        refused(message, check, CLASSIFIER, 2, choice, train=train, val=val, test=test)
    else:
        check(CLASSIFIER, 2, choice, train=train, val=val, test=test)
