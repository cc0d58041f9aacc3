"""Top-1, top-5 and nearest class mean against loops."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gkd_plugin.runner.accuracy import Accuracy, embedding_of, evaluate, near_chance, student_ncm
from tests.fakes import TinyImages, TinyNet
from tests.runner.fakes import cpu


@pytest.fixture(scope="module")
def accelerator():
    return cpu()


def loop(scores, labels, k):
    hits = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        hits += label in sorted(range(len(row)), key=lambda c: -row[c])[:k]
    return 100 * hits / len(labels)


@pytest.mark.parametrize("classes", [2, 5, 6, 20])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_accuracy_against_a_loop(accelerator, classes, batch_size):
    generator = torch.Generator().manual_seed(classes)
    scores = torch.randn(50, classes, generator=generator)
    labels = torch.randint(classes, (50,), generator=generator)
    loader = accelerator.prepare(DataLoader(TensorDataset(scores, labels), batch_size=batch_size))
    result = evaluate(lambda x: x, loader, accelerator)
    assert result.top1 == pytest.approx(loop(scores, labels, 1))
    assert result.top5 == (pytest.approx(loop(scores, labels, 5)) if classes > 5 else None)
    assert (result.samples, result.classes) == (50, classes)
    assert set(result.as_dict("ncm_")) == ({"ncm_top1", "ncm_top5"} if classes > 5 else {"ncm_top1"})


def test_batches_with_supplementary_data_and_half_precision_scores(accelerator):
    batches = [(torch.eye(3).bfloat16(), torch.tensor([0, 1, 0]), {"index": [1, 2, 3]})]
    assert evaluate(lambda x: x, batches, accelerator).top1 == pytest.approx(200 / 3)
    assert evaluate(lambda x: x, [], accelerator).top1 == 0


def grouped(scores, labels, groups):
    dataset = TensorDataset(scores, labels)
    dataset.class_groups = groups
    return DataLoader(dataset, batch_size=7)


def test_groups_of_classes_against_a_loop(accelerator):
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 4, generator=generator), torch.randint(4, (50,), generator=generator)
    groups = {"old": [0, 1, 3], "new": [2]}
    result = evaluate(lambda x: x, accelerator.prepare(grouped(scores, labels, groups)), accelerator)
    parts = {}
    for name, members in groups.items():
        chosen = [i for i, label in enumerate(labels.tolist()) if label in members]
        parts[name] = loop(scores[chosen], labels[chosen], 1)
    old, new = parts["old"], parts["new"]
    assert old != new
    assert result.as_dict() == pytest.approx(
        {"top1": result.top1, "old_top1": old, "new_top1": new, "harmonic_mean": 2 * old * new / (old + new)}
    )
    assert set(result.as_dict("ncm_")) == {"ncm_top1", "ncm_old_top1", "ncm_new_top1", "ncm_harmonic_mean"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1], {"top1": 50, "old_top1": 100, "new_top1": 0, "harmonic_mean": 0}),
        ([1, 1], {"top1": 0, "new_top1": 0}),  # a group without samples has no accuracy
    ],
)
def test_groups_at_the_edges(accelerator, labels, expected):
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    result = evaluate(lambda x: x, grouped(scores, torch.tensor(labels), {"old": [0], "new": [1]}), accelerator)
    assert result.as_dict() == expected


class OneOfTwo:
    """The first of two processes: gathering appends what the second one sends, batch by batch."""

    device = torch.device("cpu")
    is_main_process = False

    def __init__(self, others):
        self.others = iter(others)

    def gather_for_metrics(self, own):
        return tuple(torch.cat(pair) for pair in zip(own, next(self.others), strict=True))


def test_groups_count_the_samples_of_all_processes():
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    own = grouped(right, torch.tensor([0]), {"old": [0], "new": [1]})
    second = OneOfTwo([(torch.cat([wrong, wrong]), torch.tensor([0, 1]))])
    assert evaluate(lambda x: x, own, second).groups == {"old": 50, "new": 100}


def test_embedding_is_read_without_leaving_a_hook():
    model = TinyNet().eval()
    images = torch.rand(2, 3, 32, 32)
    embedded = embedding_of(model, "pool")(images)
    assert embedded.shape == (2, 8)
    torch.testing.assert_close(model.fc(embedded), model(images))
    assert len(model.pool._forward_hooks) == 0


class Mean(nn.Module):
    """Embeds an image as its channel and column means."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Identity()

    def forward(self, x):
        return self.embedding(torch.cat([x.mean((2, 3)), x.mean((1, 2))], 1))


def test_student_ncm_against_a_loop(accelerator):
    train, val = TinyImages(seed=0), TinyImages(seed=1)
    val.targets = [(label + 1) % 4 for label in val.targets]  # centres of the validation set would be right
    model = Mean()
    result = student_ncm(
        model,
        "embedding",
        DataLoader(train, batch_size=5, shuffle=True, drop_last=True),
        DataLoader(val, batch_size=7),
        accelerator,
    )
    unit = nn.functional.normalize
    labels = torch.tensor(train.targets)
    centres = torch.stack([unit(model(train.images)[labels == k].mean(0), dim=0) for k in range(4)])
    similarity = unit(model(val.images), dim=1) @ centres.T
    assert result.top1 == pytest.approx(loop(similarity, torch.tensor(val.targets), 1))
    assert result.top1 < 20
    assert (result.samples, result.classes) == (24, 4)


@pytest.mark.parametrize(
    ("top1", "samples", "classes", "expected"),
    [
        (50.0, 1000, 2, True),
        (54.0, 1000, 2, True),
        (55.0, 1000, 2, False),
        (20.0, 24, 4, True),
        (100.0, 24, 4, False),
        (3.0, 10_000, 100, False),
        (1.1, 10_000, 100, True),
        (0.0, 0, 0, True),
    ],
)
def test_near_chance(top1, samples, classes, expected):
    assert near_chance(Accuracy(top1, None, samples, classes)) is expected
