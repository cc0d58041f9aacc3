"""Class centres, local classifier distillation and adaptive emphasis against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_plugin import functional
from gkd_plugin.functional import ClassCentreAccumulator, class_centres, emphasis_weights, local_classifier_distillation
from tests import reference


def batch(size=16, classes=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, classes, generator=generator, dtype=dtype)
    local = 3 * torch.randn(size, classes, generator=generator, dtype=dtype)
    return student, local, torch.randint(classes - 2, (size,), generator=generator)


def samples(size=40, classes=5, width=6):
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (size - classes,), generator=generator)])
    return torch.randn(size, width, generator=generator) + 1, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_centres_match_the_loops(dtype):
    embedding, labels = samples()
    embedding = embedding.to(dtype)
    torch.testing.assert_close(class_centres([(embedding, labels)]), reference.centres(embedding, labels, 5).float())


@settings(deadline=None, max_examples=20)
@given(pieces=st.integers(1, 12))
def test_streaming_over_batches_changes_nothing(pieces):
    embedding, labels = samples()
    batches = zip(embedding.chunk(pieces), labels.chunk(pieces), strict=True)
    assert torch.allclose(class_centres(batches, 5), class_centres([(embedding, labels)], 5), rtol=0, atol=1e-7)


def test_long_streams_keep_their_digits():
    accumulator = ClassCentreAccumulator(1)
    for _ in range(200):
        accumulator.update(torch.tensor([[1e4, 1e-3]]), torch.tensor([0]))
    assert accumulator.result()[0, 1].item() == pytest.approx(1e-7, rel=1e-6)
    assert accumulator.counts.tolist() == [200]
    growing = ClassCentreAccumulator()
    for labels in ([0, 0], [2, 1]):
        growing.update(torch.eye(2), torch.tensor(labels))
    assert growing.counts.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("batches", "classes", "message"),
    [
        ([(torch.ones(2, 3), torch.tensor([0, 2]))], None, "no sample of class 1: its centre cannot be computed"),
        ([(torch.ones(1, 3), torch.tensor([-1]))], 3, "class index out of range: label -1, allowed 0 … 2"),
        ([(torch.ones(1, 3), torch.tensor([3]))], 3, "class index out of range: label 3, allowed 0 … 2"),
        ([], None, "no samples"),
        ([(torch.ones(2, 3, 1), torch.tensor([0, 0]))], None, r"embeddings \[B, D\] and labels \[B\]"),
    ],
)
def test_what_has_no_centres(batches, classes, message):
    with pytest.raises(ValueError, match=message):
        class_centres(batches, classes)


def test_nearest_class_mean_is_the_nearest_on_the_sphere():
    embedding, labels = samples()
    centres = class_centres([(embedding, labels)])
    scores = functional.nearest_class_mean(embedding, centres)
    rows = torch.nn.functional.normalize(embedding, dim=1)
    assert torch.equal(scores.argmax(1), torch.cdist(rows, centres).argmin(1))
    assert scores.abs().max() <= 1 + 1e-6


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 10),
    classes=st.integers(3, 6),
    scale=st.floats(0, 100),
    temperatures=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    weighted=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_batch_matches_the_loops(size, classes, scale, temperatures, weighted, double, seed):
    student, local, labels = batch(size, classes, torch.float64 if double else torch.float32, seed)
    weights = emphasis_weights(local) if weighted else None
    choices = dict(zip(("temperature", "student_temperature"), temperatures, strict=True))
    got = local_classifier_distillation(scale * student, local, labels, weights=weights, **choices)
    want = reference.local_classifier(scale * student, local, labels, *temperatures, weights)
    assert got.dtype == student.dtype
    assert got.item() == pytest.approx(want, rel=1e-9 if double else 1e-5, abs=1e-12)


def test_gradcheck_and_neither_absent_classes_nor_the_teacher_get_a_gradient():
    student, local, labels = batch()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_classifier_distillation(x, local, labels), (student,))
    local_classifier_distillation(student, local.requires_grad_(), labels).backward()
    absent = ~functional.present_classes(labels, 7)
    assert absent.any()
    assert torch.equal(student.grad[:, absent], torch.zeros(16, int(absent.sum()), dtype=torch.float64))
    assert local.grad is None


@pytest.mark.parametrize("size", [16, 0])
def test_one_class_or_none_in_the_batch_is_zero_with_a_graph(size):
    student, local, _ = batch(size)
    student.requires_grad_()
    loss = local_classifier_distillation(student, local, torch.full((size,), 3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_local_logits_are_products_in_float32_under_autocast():
    embedding, centres = torch.randn(4, 64), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = functional.local_logits(embedding, centres)
    assert got.dtype == torch.float32
    assert torch.equal(got, embedding @ centres.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "^temperature: must be a finite number above 0, got 0$"),
        ({"teacher_local_logits": torch.zeros(16, 5)}, r"student \[16, 7\], teacher \[16, 5\]"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels \[3\]"),
        ({"student_temperature": float("inf")}, "^student_temperature: must be a finite number above 0, got inf$"),
        ({"weights": torch.ones(16, 1)}, r"^weights must be one for each sample, \[16\], got \[16, 1\]$"),
    ],
)
def test_bad_input_is_named(change, message):
    student, local, labels = batch()
    arguments = {"student_logits": student, "teacher_local_logits": local, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        local_classifier_distillation(**arguments)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 12), classes=st.integers(1, 6), scale=st.floats(0.01, 50), seed=st.integers(0, 1000))
def test_emphasis_matches_the_loops(size, classes, scale, seed):
    logits = scale * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = emphasis_weights(logits.requires_grad_())
    want = torch.tensor(reference.emphasis(logits), dtype=torch.float64)
    torch.testing.assert_close(weights, want, rtol=1e-9, atol=1e-9)
    assert not weights.requires_grad


@pytest.mark.parametrize(
    "logits", [torch.zeros(4, 3), torch.randn(1, 3), torch.randn(5, 1), torch.empty(0, 3).bfloat16()]
)
def test_equal_confidence_weighs_one(logits):
    assert torch.equal(emphasis_weights(logits), torch.ones(len(logits)))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e30, 0.0], [0.0, 0.0]])
    assert torch.isfinite(emphasis_weights(logits)).all()
    assert functional.confidence_cost(logits)[0] == 0
