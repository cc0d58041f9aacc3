"""Relationship matching against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gkd_plugin.functional import EmbeddingQueue, _engine, relationship_matching
from tests import reference


def batch(size=24, classes=4, width=8, teacher_width=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, width, generator=generator, dtype=dtype)
    teacher = torch.randn(size, teacher_width, generator=generator, dtype=dtype)
    return student, teacher, torch.randint(classes, (size,), generator=generator)


def relative_error(got, want):
    return (got.double() - want.double()).norm() / want.double().norm()


def match_and_gradient(student, teacher, labels, **settings):
    """(match, gradient with respect to the embedding)."""
    leaf = student.clone().requires_grad_()
    match = relationship_matching(leaf, teacher, labels, **settings)
    match.loss.backward()
    return match, leaf.grad


DIGITS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])


def assert_matches(found, want, tolerance):
    (match, gradient), (loss, tuples, negatives, want_gradient) = found, want
    assert match.tuples == tuples > 0
    assert not match.negatives.requires_grad
    assert match.negatives.item() == pytest.approx(negatives)
    assert match.loss.item() == pytest.approx(loss, rel=tolerance)
    assert relative_error(gradient, want_gradient) < tolerance


def assert_agrees(batch, tolerance, tiled=None, **choices):
    """With the loops: the loss, and its gradient with respect to the embedding before normalisation."""
    want = reference.relationship(*batch, **choices)
    assert_matches(match_and_gradient(*batch, tiled=tiled, **choices), want, tolerance)


@pytest.mark.parametrize("mining", ["semihard", "hard", "all"])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("max_negatives", [None, 1, 3, "smallest"])
@DIGITS
def test_matches_the_loops(mining, temperature, max_negatives, dtype, tolerance):
    choices = {"temperature": temperature, "mining": mining, "max_negatives": max_negatives}
    assert_agrees(batch(dtype=dtype), tolerance, **choices)


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(0, 14),
    classes=st.integers(1, 5),
    temperature=st.floats(0.02, 10),
    margin=st.floats(0, 2),
    seed=st.integers(0, 1000),
)
def test_any_batch_matches_the_loops(size, classes, temperature, margin, seed):
    student, teacher, labels = batch(size=size, classes=classes, seed=seed)
    got = relationship_matching(student, teacher, labels, temperature=temperature, margin=margin)
    loss, tuples, negatives, _ = reference.relationship(student, teacher, labels, temperature, margin)
    assert got.tuples == tuples
    assert got.negatives.item() == pytest.approx(negatives)
    assert got.loss.item() == pytest.approx(loss, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("settings", [{}, {"tiled": True}, {"max_negatives": 2}, {"max_negatives": "smallest"}])
@pytest.mark.parametrize("has_earlier", [False, True])
def test_parts_of_the_anchors_add_up_to_the_whole(settings, has_earlier):
    earlier = batch(size=9, seed=1) if has_earlier else None
    whole, gradient = match_and_gradient(*batch(), earlier=earlier, **settings)
    parts = [
        match_and_gradient(*batch(), earlier=earlier, anchors=span, **settings) for span in ((0, 7), (7, 7), (7, 24))
    ]
    assert sum(match.tuples for match, _ in parts) == whole.tuples
    assert sum(match.loss * match.tuples for match, _ in parts).item() == pytest.approx(
        (whole.loss * whole.tuples).item()
    )
    summed = sum(part * match.tuples for match, part in parts)
    assert relative_error(summed, gradient * whole.tuples) < 1e-12


@pytest.mark.parametrize("anchors", [(3, 2), (-1, 4), (0, 25)])
def test_anchors_are_rows_of_the_batch(anchors):
    with pytest.raises(ValueError, match=r"anchors .* 24 rows"):
        relationship_matching(*batch(), anchors=anchors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_loses_nothing_but_its_own_rounding(dtype):
    student, teacher, labels = (x.to(dtype) if x.is_floating_point() else x for x in batch())
    got = relationship_matching(student, teacher, labels)
    want, *_ = reference.relationship(student, teacher, labels)
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(want, rel=1e-5)


def structured(kind):
    """Student, teacher and labels of a float32 batch whose classes matter to both; the student's lies in a cone."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    sizes = {"imbalanced": [48, 6, 4, 1, 1], "two classes": [30, 30]}.get(kind, [12] * 5)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    student = 3 * draw(16).abs() + draw(5, 16)[labels] + draw(60, 16)
    teacher = 2 * draw(5, 24)[labels] + draw(60, 24)
    if kind == "duplicated":  # every second sample repeats its predecessor of the same class
        student[1::2], teacher[1::2] = student[::2], teacher[::2]
    return student.relu() if kind == "behind a ReLU" else student, teacher, labels


@pytest.mark.parametrize("temperature", [4.0, 0.5, 0.15, 0.1])
@pytest.mark.parametrize("kind", ["imbalanced", "duplicated", "two classes", "behind a ReLU"])
def test_float32_agrees_with_float64_loops(kind, temperature):
    for tiled in (False, True):
        assert_agrees(structured(kind), 1e-5, tiled, temperature=temperature)


@pytest.mark.parametrize("mining", ["semihard", "hard", "all"])
def test_equal_rows_of_different_classes_do_not_pull_at_each_other(mining):
    student, teacher, labels = batch(size=40, width=16, dtype=torch.float32)
    student[1::4] = student[::4]
    assert_agrees((student, teacher, labels), 1e-5, temperature=1.0, mining=mining)


@pytest.mark.parametrize("temperature", [4.0, 0.5, 0.15, 0.1, 0.02])
def test_a_teacher_that_spans_all_distances(temperature):
    """A teacher opposed to the student: its farthest are the student's nearest, distances from 0 to 1.97."""
    generator = torch.Generator().manual_seed(2)
    size = 64
    angle = torch.linspace(0, 2.8, size)
    student = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.02 * torch.randn(size, 2, generator=generator)
    turned = angle[torch.randperm(size, generator=generator)]
    teacher = torch.stack([turned.cos(), turned.sin()], dim=1)
    assert reference.distances(teacher).max() > 1.9
    assert_agrees((student, teacher, torch.arange(size) % 4), 1e-4, temperature=temperature)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("elements", [1, 20 * 27, 10**6])
@DIGITS
def test_the_size_of_the_tiles_does_not_matter(tiled, elements, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(_engine, "_CPU_TILE", elements)
    assert_agrees(batch(size=27, dtype=dtype), tolerance, tiled)


@pytest.mark.parametrize("max_negatives", [None, 1, "smallest"])
@DIGITS
def test_earlier_batches_are_positives_and_negatives_but_no_anchors(max_negatives, dtype, tolerance):
    student, teacher, labels = batch(size=30, dtype=dtype)
    *want, gradient = reference.relationship(student, teacher, labels, max_negatives=max_negatives, anchors=12)
    now, earlier = ((student[part], teacher[part], labels[part]) for part in (slice(12), slice(12, None)))
    found = match_and_gradient(*now, earlier=earlier, max_negatives=max_negatives)
    assert_matches(found, (*want, gradient[:12]), tolerance)


def test_tiles_hold_no_square_matrix(monkeypatch):
    """Every tensor that an operation of the engine returns is counted."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    Largest.elements = max(Largest.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
            return result

    size = 2048
    monkeypatch.setattr(_engine, "full_precision_products", Largest)
    match_and_gradient(*batch(size=size, classes=256, dtype=torch.float32), tiled=True)
    assert 0 < Largest.elements < size**2 / 8


def test_loss_falls_to_zero_where_the_spaces_agree():
    student, _, labels = batch()
    assert relationship_matching(student, 3 * student, labels).loss.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    "labels",
    [[1, 1, 1, 1], [0, 1, 2, 3], [5], [], [0, 1], [0, 0, 0]],
    ids=["one class", "no positives", "one sample", "no samples", "two singletons", "three of one class"],
)
@pytest.mark.parametrize("max_negatives", [None, "smallest"])
@pytest.mark.parametrize("tiled", [False, True])
def test_no_tuple_is_a_zero_loss_with_a_graph(labels, max_negatives, tiled):
    student, classes = torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.long)
    match, gradient = match_and_gradient(student, student + 1, classes, max_negatives=max_negatives, tiled=tiled)
    assert match.loss.item() == match.tuples.item() == match.negatives.item() == 0
    assert torch.equal(gradient, torch.zeros_like(student))


def test_a_row_of_zeros_has_no_gradient():
    student = torch.tensor([[1.0, 0], [1, 0], [0, 0], [1.1, 0.3], [0.9, 0.1]])
    match, gradient = match_and_gradient(student, torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1]), margin=2.0)
    assert match.tuples > 0
    assert torch.isfinite(gradient).all()
    assert not gradient[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("choices", [{}, {"mining": "all"}, {"temperature": 0.05}, {"tiled": True}], ids=str)
def test_the_length_of_the_embedding_does_not_matter(choices, dtype):
    """From the smallest numbers to the largest: the same bits of loss and direction, and nothing that is not finite."""
    student, teacher, labels = batch(dtype=dtype)
    want, gradient = match_and_gradient(student, teacher, labels, **choices)
    for exponent in (-50, 50, 64, 90 if dtype == torch.float32 else 900):
        factor = torch.tensor(2.0**exponent, dtype=dtype)
        match, scaled = match_and_gradient(student * factor, teacher / factor, labels, **choices)
        assert match.loss == want.loss
        assert torch.equal(scaled * factor, gradient)
    for factor in (1e19, torch.finfo(dtype).tiny, torch.finfo(dtype).tiny * torch.finfo(dtype).eps):
        match, scaled = match_and_gradient(student * factor, teacher * factor, labels, **choices)
        assert match.loss.isfinite()
        assert scaled.isfinite().all()


def test_autocast_does_not_lower_the_precision():
    student, teacher, labels = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relationship_matching(student, teacher, labels).loss
    assert inside.dtype == torch.float32
    assert torch.equal(inside, relationship_matching(student, teacher, labels).loss)


@pytest.mark.parametrize("tiled", [False, True])
def test_no_gradient_is_computed_where_none_is_asked_for(tiled, monkeypatch):
    student, teacher, labels = batch()
    monkeypatch.delattr(_engine.Distances, "gradient")
    with torch.no_grad():
        loss = relationship_matching(student.requires_grad_(), teacher, labels, tiled=tiled).loss
    assert not loss.requires_grad
    assert loss.item() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("choices", [{}, {"mining": "all"}, {"temperature": 0.05}, {"tiled": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_that_is_not_finite_is_not_dropped(value, which, choices, dtype):
    """Distances to it are NaN, which no window holds: the loss must not be a silent 0."""
    embeddings = batch(dtype=dtype)
    embeddings[which][3, 2] = value
    match = relationship_matching(*embeddings, **choices)
    assert match.loss.isnan()
    if which == 0:  # centring spreads it to every row
        assert match.tuples == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.uint16])
def test_labels_of_any_type_without_fraction(dtype):
    student, teacher, labels = batch(classes=2)
    want = relationship_matching(student, teacher, labels)
    assert relationship_matching(student, teacher, labels.to(dtype)).loss == want.loss
    assert relationship_matching(student, teacher, torch.tensor([-7, 10**12])[labels]).loss == want.loss
    earlier = (student, teacher, labels + 256)
    matches = (relationship_matching(student, teacher, y, earlier=earlier) for y in (labels, labels.to(dtype)))
    assert torch.equal(*(match.tuples for match in matches))


def test_margins_beyond_every_distance_are_one():
    student, teacher, labels = batch(dtype=torch.float32)
    want = relationship_matching(student, teacher, labels, margin=4.0).loss
    for margin in (1e300, torch.inf):
        assert relationship_matching(student, teacher, labels, margin=margin).loss == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: must be a finite number above 0, got 0.0"),
        ({"margin": -0.1}, "margin: must be a number, at least 0, got -0.1"),
        ({"max_negatives": 0}, "max_negatives: must be None, 'smallest' or an integer ≥ 1, got 0"),
        ({"max_negatives": "all"}, "got 'all'"),
        ({"temperature": True}, "temperature: must be .*, got True"),
        ({"margin": "a"}, "margin: must be a number, at least 0, got 'a'"),
        ({"mining": []}, r"mining: \[\] is unknown; .*allowed: 'all', 'hard', 'semihard'"),
        ({"earlier": "x"}, r"three tensors, as EmbeddingQueue.content\(\) gives them, got str"),
        ({"mining": "semi-hard"}, "mining: 'semi-hard' is unknown; did you mean 'semihard'"),
        ({"earlier": (torch.ones(2, 8), torch.ones(2, 11), torch.ones(2).int())}, r"^earlier .*\[B, 8\] and \[B, 12\]"),
        ({"earlier": (torch.zeros(2, 8), torch.zeros(3, 12), torch.zeros(2).int())}, r"got \[2, 8\], \[3, 12\], \[2\]"),
        ({"labels": torch.zeros(24)}, "integer labels, got torch.float32"),
        ({"earlier": (torch.zeros(2, 8), torch.zeros(2, 12), torch.zeros(2))}, "integer labels, got torch.float32"),
        ({"labels": torch.zeros(23, dtype=torch.long)}, r"got \[24, 8\], \[24, 12\], \[23\]"),
        ({"teacher_embedding": torch.zeros(24, 3, 1, 1)}, r"\[24, 3, 1, 1\]"),
    ],
)
def test_bad_input_is_named(change, message):
    student, teacher, labels = batch()
    with pytest.raises(ValueError, match=message):
        relationship_matching(**{"student_embedding": student, "teacher_embedding": teacher, "labels": labels} | change)


@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 12), max_size=6))
def test_a_queue_keeps_the_last_samples_in_order(size, batches):
    queue, seen = EmbeddingQueue(size), []
    for count in batches:
        numbers = torch.arange(len(seen), len(seen) + count)
        seen += numbers.tolist()
        queue.push(numbers[:, None].float(), numbers[:, None].double() * torch.ones(3), numbers)
    assert len(queue) == min(size, len(seen))
    if batches:
        student, teacher, labels = queue.content()
        assert labels.tolist() == student.flatten().tolist() == seen[-size:]
        assert teacher.shape[1] == 3
    queue.clear()
    assert queue.content() is None


def test_a_queue_keeps_no_graph_and_no_view_of_the_batch():
    queue, student, labels = EmbeddingQueue(4), torch.ones(2, 3, requires_grad=True), torch.tensor([0, 1])
    queue.push(student * 2, torch.ones(2, 3), labels)
    labels.zero_()
    kept, _, kept_labels = queue.content()
    assert not kept.requires_grad
    assert kept_labels.tolist() == [0, 1]


def test_what_no_queue_takes():
    with pytest.raises(ValueError, match=r"a queue takes .* got \[2, 3\], \[1, 3\], \[2\]"):
        EmbeddingQueue(4).push(torch.ones(2, 3), torch.ones(1, 3), torch.tensor([0, 1]))
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"size must be a whole number from 1 up, got {size}"):
            EmbeddingQueue(size)
