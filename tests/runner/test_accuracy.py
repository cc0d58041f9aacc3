"""Top-1, top-5 and nearest class mean against loops; what is measured of the teacher, and of the student at the end."""

import logging
import re
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from gkd_plugin.data import with_evaluation_view
from gkd_plugin.data.labels import unwrapped
from gkd_plugin.models import timm_model
from gkd_plugin.runner import accuracy as module
from gkd_plugin.runner.accuracy import (
    PROBES,
    Accuracy,
    check_teacher,
    evaluate,
    final_figures,
    left_out_ncm,
    student_ncm,
)
from tests.fakes import TinyImages, TinyNet, make_box, stage
from tests.runner.fakes import cpu


@pytest.fixture
def accelerator():
    return cpu()


def loop(scores, labels, k=1):
    pairs = zip(scores.tolist(), labels.tolist(), strict=True)
    hits = sum(label in sorted(range(len(row)), key=lambda c: -row[c])[:k] for row, label in pairs)
    return 100 * hits / len(labels)


def grouped(scores, labels, groups, batch_size=7):
    dataset = TensorDataset(scores, torch.as_tensor(labels))
    dataset.class_groups = groups
    return DataLoader(dataset, batch_size=batch_size)


@pytest.mark.parametrize(
    ("classes", "batch_size", "groups"),
    [(2, 50, None), (4, 7, {"old": [0, 1, 3], "new": [2]}), (5, 7, None), (6, 1, None), (20, 7, None)],
)
def test_accuracy_against_a_loop(accelerator, classes, batch_size, groups):
    generator = torch.Generator().manual_seed(classes)
    scores, labels = torch.randn(50, classes, generator=generator), torch.randint(classes, (50,), generator=generator)
    result = evaluate(lambda x: x, accelerator.prepare(grouped(scores, labels, groups, batch_size)), accelerator)
    want = {"n_top1": loop(scores, labels)}
    if classes > 5:
        want["n_top5"] = loop(scores, labels, 5)
    if groups:
        masks = [torch.isin(labels, torch.tensor(members)) for members in groups.values()]
        old, new = (loop(scores[mask], labels[mask]) for mask in masks)
        assert old != new
        want |= {"n_old_top1": old, "n_new_top1": new, "n_harmonic_mean": 2 * old * new / (old + new)}
    assert result.as_dict("n_") == pytest.approx(want)
    assert (result.samples, result.classes) == (50, classes)


def test_batches_with_supplementary_data_and_half_precision_scores(accelerator):
    batches = [(torch.eye(3).bfloat16(), torch.tensor([0, 1, 0]), {"index": [1, 2, 3]})]
    assert evaluate(lambda x: x, batches, accelerator).top1 == pytest.approx(200 / 3)
    assert evaluate(lambda x: x, [], accelerator).top1 == 0


def test_groups_at_the_edges(accelerator):
    """A group without samples has no accuracy."""
    of_both = {"top1": 50, "old_top1": 100, "new_top1": 0, "harmonic_mean": 0}
    for labels, expected in (([0, 1], of_both), ([1, 1], {"top1": 0, "new_top1": 0})):
        loader = grouped(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), labels, {"old": [0], "new": [1]})
        assert evaluate(lambda x: x, loader, accelerator).as_dict() == expected


def test_groups_count_the_samples_of_all_processes():
    """Gathering appends the batch of the second of two processes."""
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    second = torch.cat([wrong, wrong]), torch.tensor([0, 1])
    first = SimpleNamespace(device=right.device, is_main_process=False)
    first.gather_for_metrics = lambda own: map(torch.cat, zip(own, second, strict=True))
    assert evaluate(lambda x: x, grouped(right, [0], {"old": [0], "new": [1]}), first).groups == {"old": 50, "new": 100}


def test_near_chance():
    for top1, *counts in ((54.0, 1000, 2), (20.0, 24, 4), (1.1, 10_000, 100), (0.0, 0, 0)):
        assert module.near_chance(Accuracy(top1, None, *counts)) is True
    for top1, *counts in ((55.0, 1000, 2), (3.0, 10_000, 100)):
        assert module.near_chance(Accuracy(top1, None, *counts)) is False


class Means(nn.Module):
    """A student whose logits and embedding are an image's channel means and column means."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Identity()

    def forward(self, x):
        return self.embedding(torch.cat([x.mean((2, 3)), x.mean((1, 2))], 1))


def test_student_ncm_against_a_loop(accelerator):
    train, val = TinyImages(seed=0), TinyImages(seed=1)
    val.targets = [(label + 1) % 4 for label in val.targets]  # centres of the validation set would be right
    model = Means()
    loaders = DataLoader(train, batch_size=5, shuffle=True, drop_last=True), DataLoader(val, batch_size=7)
    result = student_ncm(model, "embedding", *loaders, accelerator)
    unit = nn.functional.normalize
    labels = torch.tensor(train.targets)
    centres = torch.stack([unit(model(train.images)[labels == k].mean(0), dim=0) for k in range(4)])
    similarity = unit(model(val.images), dim=1) @ centres.T
    assert result.top1 == pytest.approx(loop(similarity, torch.tensor(val.targets)))
    assert result.top1 < 20
    assert (result.samples, result.classes) == (24, 4)
    assert not model.embedding._forward_hooks


@pytest.mark.parametrize(
    ("figures", "final"),
    [
        ([10.0, 20.0, 30.0, 40.0], {"top1": 40.0, "on": "validation", "val_top1_last3": 30.0}),
        ([None, None, 30.0], {"top1": 30.0, "on": "validation", "val_top1_last3": 30.0}),
        ([10.0, None], {"val_top1_last3": 10.0}),
        ([None], {}),
    ],
)
def test_without_a_test_set_the_figures_are_of_the_validation_set(figures, final):
    """Of the last epoch, and the mean of the last three where they have one."""
    rows = [{"epoch": n, **({} if top1 is None else {"top1": top1})} for n, top1 in enumerate(figures, 1)]
    summary = {"stages": {"stage1": {"epochs": [{"top1": 99.0}]}, "stage2": {"epochs": rows}}}
    assert final_figures(SimpleNamespace(test_loader=None), summary) == final


def viewed(data):
    return with_evaluation_view(data, data)


def final(train, **changes):
    given = {"student": Means(), "embedding_path": "embedding", "num_classes": 4, "accelerator": cpu()}
    box = SimpleNamespace(train_data_loader=DataLoader(train, batch_size=5))
    loader = DataLoader(TinyImages(seed=1), batch_size=7)
    parts = SimpleNamespace(**{**given, "box": box, "test_loader": loader, **changes})
    return final_figures(parts, {"stages": {"train": {"epochs": []}}})


@pytest.mark.parametrize(
    ("train", "changes", "reason"),
    [
        (viewed(TinyImages()), {"embedding_path": None}, "does not show which module gives the student's embedding"),
        (viewed(TinyImages()), {"num_classes": 6}, "no training sample of class 4, 5"),
        (viewed(Subset(TinyImages(), range(6, 24))), {"num_classes": None}, "no training sample of class 0"),
        (list(TinyImages()), {}, "dataset list has no labels to read"),
        (TinyImages(), {}, "the training set offers no evaluation view"),
    ],
)
def test_where_the_embedding_cannot_be_measured_one_line_says_why(caplog, train, changes, reason):
    with caplog.at_level(logging.INFO, "gkd_plugin"):
        assert final(train, **changes).keys() == {"top1", "top5", "on", "samples"}
    (line,) = caplog.messages
    assert line.startswith("final NCM accuracy: not measured, ")
    assert reason in line


class Knowing(TinyNet):
    """Tells the classes of TinyImages, moved by ``shift``, without having been trained."""

    def __init__(self, num_classes=4, shift=0, names=None):
        super().__init__()
        self.embedding = torch.nn.Identity()
        self.shift = shift
        self.num_classes = num_classes
        self.trained_classes = names and list(names)

    def forward(self, x):
        score = torch.stack([x[:, k % 3, :, 4 * k : 4 * k + 4].mean((1, 2)) for k in range(4)], dim=1)
        extra = torch.zeros(len(x), max(self.num_classes - 4, 0))
        return torch.cat([self.embedding(score).roll(self.shift, dims=1), extra], dim=1)


class Blind(Knowing):
    """Sees nothing: one embedding for every image."""

    def forward(self, x):
        return super().forward(torch.ones_like(x))


def box_of(model, accelerator, **changes):
    torch.manual_seed(0)
    return make_box(stage("embedding", **changes), model, timm_model("test_resnet", num_classes=4), accelerator)


@pytest.mark.parametrize(
    ("teacher", "num_classes", "row"),
    [
        (Knowing(), 4, {"ncm_top1": 100.0, "top1": 100.0}),
        (Knowing(shift=1), 4, {"ncm_top1": 100.0}),  # other classes, as many
        (Knowing(7), 4, {"ncm_top1": 100.0}),
        (Knowing(7), None, {"ncm_top1": 100.0}),
        (Knowing(0), 4, {"ncm_top1": 100.0}),  # no classifier of its own
        (Blind(), 4, {"ncm_top1": 25.0}),
    ],
)
def test_what_is_measured_of_a_teacher(accelerator, caplog, teacher, num_classes, row):
    caplog.set_level(logging.INFO)
    box = box_of(teacher, accelerator)
    assert check_teacher(box, num_classes, accelerator) == row
    assert box.teacher_model.local_classifier.is_ready
    figure = "100.0 ± 0.0" if row["ncm_top1"] == 100 else "25.0 ± 8.8"
    assert f"teacher: NCM accuracy over the student's 4 classes {figure} % of 24 images" in caplog.messages
    own = "teacher: top-1 of its own classifier 100.0 ± 0.0 % of 24 images (the classes are shared)"
    assert (own in caplog.messages) == ("top1" in row)
    poor = "the teacher's accuracy, 25.0 %, is near chance (25.0 %): are its weights loaded (models.t"
    assert (poor in caplog.text) == ("near chance" in caplog.text) == isinstance(teacher, Blind)


def test_what_decides_an_accuracy_that_a_cache_keeps(accelerator, monkeypatch):
    """Beside the images: the training images' view, the groups of classes, and which module gives the embedding."""
    seen = {}
    kept = SimpleNamespace(once=lambda name, compute, *parts, **more: seen.update({name: (parts, more)}) or compute())
    box = box_of(Knowing(), accelerator)
    box.teacher_model.kept, student = kept, timm_model("test_resnet", num_classes=4)
    unwrapped(box.val_data_loader.dataset).class_groups = {"old": [0, 1]}
    check_teacher(box, 4, accelerator)
    monkeypatch.setattr(module, "_own_ncm", lambda *_: "not measured")
    module.advise(SimpleNamespace(box=box, student=student, embedding_path="layer4"), {"ncm_top1": 94.0})
    (teachers, of), (students, also_of) = (seen[name] for name in seen if "accuracy" in name)
    assert (teachers, students[0], students[-1]) == ((4, {"old": [0, 1]}), "layer4", {"old": [0, 1]})
    train, val = (unwrapped(loader.dataset) for loader in (box.train_data_loader, box.val_data_loader))
    assert of == also_of == {"images": val, "view": train}


@pytest.mark.parametrize(("names", "row"), [("abcd", {"top1": 0.0}), ("abce", {}), ("bacd", {}), ("wxyz", {})])
def test_names_tell_whether_the_classes_are_shared(accelerator, names, row):
    """Its own classifier, always wrong, is measured only where its classes are the student's."""
    states = []  # training begins with the same one, whatever is known of the classes
    for known, expected in ((names, row), (None, {})):
        box = box_of(Knowing(shift=1, names=known), accelerator)
        unwrapped(box.train_data_loader.dataset).classes = list("abcd")
        box.teacher_model.prepare(box, {})  # reads the names
        assert check_teacher(box, 4, accelerator) == {"ncm_top1": 100.0, **expected}
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_without_the_wrapper_its_own_classifier_is_measured(accelerator, caplog):
    section = stage("embedding")["teacher"] | {"auxiliary_model_wrapper": {}}
    for teacher, expected in ((Knowing(), 100.0), (Knowing(shift=1), 0.0)):
        assert check_teacher(box_of(teacher, accelerator, teacher=section), 4, accelerator) == {"top1": expected}
        assert ("is near chance (25.0 %)" in caplog.text) == (expected == 0)


def test_without_a_validation_set(accelerator, caplog):
    box = box_of(Knowing(), accelerator, val_data_loader={})
    caplog.set_level(logging.INFO)
    before = torch.get_rng_state()
    assert check_teacher(box, 4, accelerator) == {"ncm_top1": 100.0}
    assert torch.equal(torch.get_rng_state(), before)
    assert "classes 100.0 ± 0.0 % of 24 images (training images, each left out in turn)" in caplog.text
    bare = stage("embedding")["teacher"] | {"auxiliary_model_wrapper": {}}
    assert check_teacher(box_of(Knowing(), accelerator, val_data_loader={}, teacher=bare), 4, accelerator) == {}
    assert "there is no validation set (val_data_loader)" in caplog.text


@pytest.mark.parametrize(("most", "counts"), [(100, (6, 6, 6, 1)), (9, (2, 2, 2, 1))])
def test_each_image_left_out_against_a_loop(accelerator, monkeypatch, most, counts):
    """Also of the first of each class alone; the only image of its class is never right."""
    monkeypatch.setattr(module, "MAX_ROWS", most)
    images = TinyImages(seed=3)
    images = Subset(images, range(19))
    images.targets = images.dataset.targets[:19]
    embed = lambda x: x.mean((2, 3)) + x[:, :, 0, :3].mean(1)  # noqa: E731
    found = left_out_ncm(embed, DataLoader(images, batch_size=4), accelerator)
    kept = [i for k, n in enumerate(counts) for i in [j for j in range(19) if images.targets[j] == k][:n]]
    rows = {i: embed(images[i][0][None])[0].double() for i in kept}
    right = 0
    for i in kept:
        means = {}
        for k in range(4):
            others = [rows[j] for j in kept if images.targets[j] == k and j != i]
            means[k] = sum(others) / len(others) if others else torch.zeros(3)
        scores = [float(torch.nn.functional.cosine_similarity(rows[i], means[k].double(), dim=0)) for k in range(4)]
        right += scores.index(max(scores)) == images.targets[i]
    assert (found.samples, found.classes) == (len(kept), 4)
    assert found.top1 == pytest.approx(100 * right / len(kept))
    assert 0 < right < len(kept)


def test_a_class_without_a_training_sample_leaves_ncm_out(accelerator, caplog):
    caplog.set_level(logging.INFO)
    box = box_of(Knowing(), accelerator)
    dataset = unwrapped(box.train_data_loader.dataset)
    dataset.targets = [3 if label == 1 else label for label in dataset.targets]
    assert check_teacher(box, 4, accelerator) == {"top1": 100.0}
    assert "teacher: no training sample of class 1: no NCM accuracy" in caplog.messages


def test_logistic_regression_weighs_classes_and_not_samples(accelerator):
    """Three samples of a class beside sixty of one that overlaps with it: unweighted, it is hardly ever predicted."""
    labels = torch.tensor([0] * 3 + [1] * 60)
    embedded = torch.randn(63, 4, generator=torch.Generator().manual_seed(0)) + labels[:, None]
    teacher = SimpleNamespace(embed=lambda images: images)
    loader = DataLoader(TensorDataset(embedded, labels), batch_size=16)
    scores = PROBES["logistic_regression"](teacher, loader, accelerator, 3)(embedded)
    assert scores.shape == (63, 3)
    assert not scores[:, 2].any()  # a class without a sample is never the answer
    got, rows = scores[:, 0].numpy(), nn.functional.normalize(embedded, dim=1).double().numpy()
    fits = (LogisticRegression(max_iter=1000, class_weight=weight).fit(rows, labels) for weight in ("balanced", None))
    balanced, plain = (fit.predict_proba(rows)[:, 0] for fit in fits)
    np.testing.assert_allclose(got, balanced, rtol=1e-4)
    assert (plain < got).all()


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (85.5, "expect little: the teacher's .* only 8.5 points above"),
        (95.0, "may do harm: its embedding is 1.0 points below the student's own; "),
        (80.0, "expect a gain: .* 14.0 points"),
    ],
)
def test_what_to_expect_of_a_teacher(caplog, monkeypatch, own, text):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_own_ncm", lambda parts, _: parts.found)
    parts = SimpleNamespace(box=Mock(val_data_loader=None, teacher_model=None), found=Accuracy(own, None, 10, 4))
    assert module.advise(parts, {"ncm_top1": 94.0}) == {"ncm_top1": own}
    assert re.search(text, caplog.text)
    assert "before training, " in caplog.text
    assert " % of 10 images" in caplog.text
    for name in ("with_unlabelled", "--unlabelled DIR", "--size PX"):
        assert (name in caplog.text) == (own > 84)
    parts.found = "no evaluation view"
    assert module.advise(parts, {"ncm_top1": 94.0}) == module.advise(parts, {}) == {}
