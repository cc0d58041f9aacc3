"""Relationship matching against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_plugin.functional import _distances, _engine, relationship_matching
from tests import reference


def batch(size=24, classes=4, width=8, teacher_width=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(size, width, generator=generator, dtype=dtype)
    teacher = torch.randn(size, teacher_width, generator=generator, dtype=dtype)
    return student, teacher, torch.randint(classes, (size,), generator=generator)


def relative_error(got, want):
    return (got.double() - want.double()).norm() / want.double().norm()


def reference_gradient(student, teacher, labels, temperature, margin):
    """Central differences of the loop-written loss."""
    gradient = torch.zeros_like(student, dtype=torch.float64)
    step = 1e-6
    for i in range(student.shape[0]):
        for j in range(student.shape[1]):
            values = []
            for sign in (1, -1):
                moved = student.double().clone()
                moved[i, j] += sign * step
                values.append(reference.relationship(moved, teacher, labels, temperature, margin)[0])
            gradient[i, j] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("temperature", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("max_negatives", [None, 1, 3, "smallest"])
def test_matches_the_loops_in_float64(temperature, max_negatives):
    student, teacher, labels = batch()
    got = relationship_matching(
        student, teacher, labels, temperature=temperature, margin=0.2, max_negatives=max_negatives
    )
    loss, tuples, negatives = reference.relationship(student, teacher, labels, temperature, 0.2, max_negatives)
    assert got.tuples == tuples > 0
    assert got.negatives.item() == pytest.approx(negatives)
    assert got.loss.item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_loses_nothing_but_its_own_rounding(dtype):
    student, teacher, labels = (x.to(dtype) if x.is_floating_point() else x for x in batch())
    got = relationship_matching(student, teacher, labels)
    want, *_ = reference.relationship(student, teacher, labels, 4.0, 0.2)
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(want, rel=1e-5)


def test_gradient_in_float32_matches_differences_of_the_loops():
    student, teacher, labels = batch(size=12, classes=3, width=4, dtype=torch.float32)
    student.requires_grad_()
    relationship_matching(student, teacher, labels, temperature=1.0).loss.backward()
    want = reference_gradient(student.detach(), teacher, labels, 1.0, 0.2)
    assert (student.grad.double() - want).norm() / want.norm() < 1e-5


def test_gradcheck():
    student, teacher, labels = batch(size=14, classes=3, width=5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relationship_matching(x, teacher, labels).loss, (student,))


def test_teacher_and_selection_carry_no_gradient():
    student, teacher, labels = batch()
    teacher.requires_grad_()
    student.requires_grad_()
    relationship_matching(student, teacher, labels).loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("mining", ["semihard", "hard", "all"])
@pytest.mark.parametrize("temperature", [0.05, 4.0])
@pytest.mark.parametrize("max_negatives", [None, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_every_strategy_matches_the_loops(mining, temperature, max_negatives, dtype, tolerance):
    student, teacher, labels = batch(dtype=dtype)
    settings = {"temperature": temperature, "margin": 0.2, "mining": mining, "max_negatives": max_negatives}
    student.requires_grad_()
    got = relationship_matching(student, teacher, labels, **settings)
    got.loss.backward()
    loss, tuples, negatives, pull = reference.matched_distances(
        reference.distances(student), reference.distances(teacher), labels.tolist(), **settings
    )
    want = torch.tensor(reference.embedding_gradient(student, pull), dtype=torch.float64)
    assert got.tuples == tuples > 0
    assert got.negatives.item() == pytest.approx(negatives)
    assert got.loss.item() == pytest.approx(loss, rel=tolerance)
    assert relative_error(student.grad, want) < tolerance


def test_loss_falls_to_zero_where_the_spaces_agree():
    student, _, labels = batch()
    assert relationship_matching(student, 3 * student, labels).loss.item() == pytest.approx(0, abs=1e-15)


def test_labels_may_have_any_integer_values():
    student, teacher, labels = batch()
    odd = torch.tensor([-7, 10**12, 0, 3])[labels]
    assert relationship_matching(student, teacher, odd).loss == relationship_matching(student, teacher, labels).loss


@pytest.mark.parametrize(
    "labels",
    [[1, 1, 1, 1], [0, 1, 2, 3], [5], [], [0, 1], [0, 0, 0]],
    ids=["one class", "no positives", "one sample", "no samples", "two singletons", "three of one class"],
)
@pytest.mark.parametrize("max_negatives", [None, "smallest"])
@pytest.mark.parametrize("tiled", [False, True])
def test_no_tuple_is_a_zero_loss_with_a_graph(labels, max_negatives, tiled):
    student = torch.randn(len(labels), 3, requires_grad=True)
    classes = torch.tensor(labels, dtype=torch.long)
    match = relationship_matching(
        student, torch.randn(len(labels), 3), classes, max_negatives=max_negatives, tiled=tiled
    )
    assert match.loss.item() == 0
    assert match.tuples.item() == 0
    assert match.negatives.item() == 0
    match.loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_equal_and_zero_rows_have_finite_gradients():
    student = torch.tensor([[1.0, 0], [1, 0], [0, 0], [1.1, 0.3], [0.9, 0.1]], requires_grad=True)
    match = relationship_matching(student, torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1]), margin=2.0)
    match.loss.backward()
    assert match.tuples > 0
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_does_not_lower_the_precision(dtype):
    student, teacher, labels = batch(dtype=torch.float32)
    outside = relationship_matching(student, teacher, labels).loss
    with torch.autocast("cpu", dtype=dtype):
        inside = relationship_matching(student, teacher, labels).loss
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


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
    loss, tuples, negatives = reference.relationship(student, teacher, labels, temperature, margin)
    assert got.tuples == tuples
    assert got.negatives.item() == pytest.approx(negatives)
    assert got.loss.item() == pytest.approx(loss, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: must be a finite number above 0, got 0.0"),
        ({"margin": -0.1}, "margin: must be a number, at least 0, got -0.1"),
        ({"max_negatives": 0}, "max_negatives: must be None, 'smallest' or an integer ≥ 1, got 0"),
        ({"max_negatives": "all"}, "got 'all'"),
        ({"temperature": float("inf")}, "temperature: must be a finite number above 0, got inf"),
        ({"temperature": True}, "temperature: must be a finite number above 0, got True"),
        ({"margin": "a"}, "margin: must be a number, at least 0, got 'a'"),
        ({"mining": []}, r"mining: must be one of semihard, hard, all, got \[\]"),
        ({"earlier": "x"}, r"three tensors, as EmbeddingQueue.content\(\) gives them, got str"),
        ({"mining": "easy"}, "mining: must be one of semihard, hard, all, got 'easy'"),
        (
            {"earlier": (torch.zeros(2, 8), torch.zeros(2, 11), torch.zeros(2).int())},
            r"\[Q, 8\], \[Q, 12\] and \[Q\], got",
        ),
        ({"earlier": (torch.zeros(2, 8), torch.zeros(3, 12), torch.zeros(2).int())}, r"got \[2, 8\], \[3, 12\], \[2\]"),
        ({"labels": torch.zeros(24)}, "integer labels, got torch.float32"),
        ({"earlier": (torch.zeros(2, 8), torch.zeros(2, 12), torch.zeros(2))}, "integer labels, got torch.float32"),
        ({"labels": torch.zeros(23, dtype=torch.long)}, "one batch"),
        ({"teacher_embedding": torch.zeros(24, 3, 1, 1)}, r"\[24, 3, 1, 1\]"),
    ],
)
def test_bad_input_is_named(change, message):
    student, teacher, labels = batch()
    arguments = {"student_embedding": student, "teacher_embedding": teacher, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        relationship_matching(**arguments)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradient_matches_that_of_the_loops(dtype, tolerance):
    student, teacher, labels = batch(size=16, classes=3, width=6, dtype=dtype)
    mine, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    relationship_matching(mine, teacher, labels).loss.backward()
    reference.differentiable_relationship(theirs, teacher.double(), labels, 4.0, 0.2).backward()
    assert (mine.grad.double() - theirs.grad).norm() / theirs.grad.norm() < tolerance


def structured(kind, generator, size=60, width=16):
    """Student, teacher and labels of a batch of float32 whose classes matter to both networks."""
    sizes = {"imbalanced": [size - 12, 6, 4, 1, 1], "two classes": [size // 2, size - size // 2]}
    counts = sizes.get(kind, [size // 5] * 5)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[
        torch.randperm(size, generator=generator)
    ]
    if kind == "random":
        return torch.randn(size, width, generator=generator), torch.randn(size, 24, generator=generator), labels
    cone = 3 * torch.rand(width, generator=generator)
    student = cone + torch.randn(5, width, generator=generator)[labels] + torch.randn(size, width, generator=generator)
    teacher = 2 * torch.randn(5, 24, generator=generator)[labels] + torch.randn(size, 24, generator=generator)
    if kind == "duplicated":  # every second sample repeats its predecessor of the same class
        first = labels.argsort(stable=True).view(-1, 2)
        student[first[:, 1]], teacher[first[:, 1]] = student[first[:, 0]], teacher[first[:, 0]]
    return student.relu() if kind == "behind a ReLU" else student, teacher, labels


@pytest.mark.parametrize("temperature", [4.0, 1.0, 0.5, 0.25, 0.15, 0.1])
@pytest.mark.parametrize("kind", ["structured", "random", "imbalanced", "duplicated", "two classes", "behind a ReLU"])
def test_float32_agrees_with_float64_loops(kind, temperature):
    """Loss and gradient with respect to the embedding before normalisation, to 1e-5."""
    student, teacher, labels = structured(kind, torch.Generator().manual_seed(1))
    s, t = reference.distances(student), reference.distances(teacher)
    loss, tuples, negatives, pull = reference.matched_distances(s, t, labels.tolist(), temperature, 0.2)
    want = torch.tensor(reference.embedding_gradient(student, pull), dtype=torch.float64)
    for tiled in (False, True):
        leaf = student.clone().requires_grad_()
        got = relationship_matching(leaf, teacher, labels, temperature=temperature, tiled=tiled)
        got.loss.backward()
        assert (got.tuples.item(), got.negatives.item()) == (tuples, pytest.approx(negatives))
        assert got.loss.item() == pytest.approx(loss, rel=1e-5)
        assert relative_error(leaf.grad, want) < 1e-5


@pytest.mark.parametrize("temperature", [4.0, 1.0, 0.5, 0.25, 0.15, 0.1, 0.02])
def test_a_teacher_that_spans_all_distances(temperature):
    """A teacher opposed to the student: its farthest are the student's nearest, distances from 0 to 1.97."""
    generator = torch.Generator().manual_seed(2)
    size = 64
    angle = torch.linspace(0, 2.8, size)
    student = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.02 * torch.randn(size, 2, generator=generator)
    turned = angle[torch.randperm(size, generator=generator)]
    teacher = torch.stack([turned.cos(), turned.sin()], dim=1)
    labels = torch.arange(size) % 4
    s, t = reference.distances(student), reference.distances(teacher)
    assert max(map(max, t)) > 1.9
    loss, _, _, pull = reference.matched_distances(s, t, labels.tolist(), temperature, 0.2)
    want = torch.tensor(reference.embedding_gradient(student, pull), dtype=torch.float64)
    leaf = student.clone().requires_grad_()
    got = relationship_matching(leaf, teacher, labels, temperature=temperature)
    got.loss.backward()
    assert got.loss.item() == pytest.approx(loss, rel=1e-4)
    assert relative_error(leaf.grad, want) < 1e-4


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("elements", [1, 20 * 27, 10**6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_size_of_the_tiles_does_not_matter(tiled, elements, dtype, tolerance, monkeypatch):
    student, teacher, labels = batch(size=27, dtype=dtype)
    want = relationship_matching(student, teacher, labels)
    monkeypatch.setattr(_engine, "_CPU_TILE", elements)
    leaf = student.clone().requires_grad_()
    got = relationship_matching(leaf, teacher, labels, tiled=tiled)
    got.loss.backward()
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=tolerance)
    assert got.tuples == want.tuples
    exact = student.double().requires_grad_()
    reference.differentiable_relationship(exact, teacher.double(), labels, 4.0, 0.2).backward()
    assert relative_error(leaf.grad, exact.grad) < tolerance


@pytest.mark.parametrize("max_negatives", [None, 1, "smallest"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_earlier_batches_are_positives_and_negatives_but_no_anchors(max_negatives, dtype, tolerance):
    student, teacher, labels = batch(size=30, dtype=dtype)
    leaf = student[:12].clone().requires_grad_()
    earlier = (student[12:], teacher[12:], labels[12:])
    got = relationship_matching(leaf, teacher[:12], labels[:12], earlier=earlier, max_negatives=max_negatives)
    got.loss.backward()
    loss, tuples, negatives, pull = reference.matched_distances(
        reference.distances(student), reference.distances(teacher), labels.tolist(), 4.0, 0.2, max_negatives, anchors=12
    )
    want = torch.tensor(reference.embedding_gradient(student, pull), dtype=torch.float64)[:12]
    assert (got.tuples.item(), got.negatives.item()) == (tuples, pytest.approx(negatives))
    assert got.loss.item() == pytest.approx(loss, rel=tolerance)
    assert relative_error(leaf.grad, want) < tolerance


def test_the_same_batch_gives_the_same_bits():
    student, teacher, labels = batch(size=200, dtype=torch.float32)
    results = []
    for _ in range(3):
        leaf = student.clone().requires_grad_()
        loss = relationship_matching(leaf, teacher, labels).loss
        loss.backward()
        results.append((loss.item(), leaf.grad))
    assert all(loss == results[0][0] and torch.equal(grad, results[0][1]) for loss, grad in results)


def test_products_stay_in_float32_where_the_user_allows_less():
    student, teacher, labels = batch(size=64, width=64, dtype=torch.float32)
    want = relationship_matching(student, teacher, labels).loss
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(relationship_matching(student, teacher, labels).loss, want)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_all_points_equal():
    student = torch.ones(6, 3, requires_grad=True)
    match = relationship_matching(student, torch.randn(6, 3), torch.arange(6) % 2)
    match.loss.backward()
    assert match.loss.item() == 0
    assert match.tuples.item() == 0
    assert torch.equal(student.grad, torch.zeros(6, 3))


def test_no_gradient_is_computed_where_none_is_asked_for(monkeypatch):
    student, teacher, labels = batch()
    for part in ("add", "gradient"):
        monkeypatch.delattr(_distances.Pulls, part)
    for tiled in (False, True):
        with torch.no_grad():
            loss = relationship_matching(student.requires_grad_(), teacher, labels, tiled=tiled).loss
        assert not loss.requires_grad
        assert loss.item() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("settings", [{}, {"mining": "all"}, {"temperature": 0.05}, {"tiled": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_that_is_not_finite_is_not_dropped(value, which, settings, dtype):
    """Distances to it are NaN, which no window holds: the loss must not be a silent 0."""
    student, teacher, labels = batch(dtype=dtype)
    (student if which == "student" else teacher)[3, 2] = value
    match = relationship_matching(student, teacher, labels, **settings)
    assert match.loss.isnan()
    if which == "student":  # centring spreads it to every row
        assert match.tuples == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool, torch.uint16])
def test_labels_of_any_type_without_fraction(dtype):
    student, teacher, labels = batch(classes=2)
    want = relationship_matching(student, teacher, labels).loss
    assert relationship_matching(student, teacher, labels.to(dtype)).loss == want
    earlier = (student, teacher, labels + 256)
    assert relationship_matching(student, teacher, labels.to(dtype), earlier=earlier).tuples == (
        relationship_matching(student, teacher, labels, earlier=earlier).tuples
    )


@pytest.mark.parametrize("scale", [1e19, 1e30, 1e-19])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.05}, {"tiled": True}], ids=str)
def test_the_length_of_finite_embeddings_does_not_matter(scale, settings):
    """Squares of such elements are infinite or 0 in float32."""
    student, teacher, labels = batch(dtype=torch.float32)
    leaf, scaled = student.clone().requires_grad_(), (student * scale).requires_grad_()
    want = relationship_matching(leaf, teacher, labels, **settings).loss
    got = relationship_matching(scaled, teacher * scale, labels, **settings).loss
    want.backward()
    got.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-4)
    assert relative_error(scaled.grad.double() * scale, leaf.grad) < 1e-3


def test_margins_beyond_every_distance_are_one():
    student, teacher, labels = batch(dtype=torch.float32)
    want = relationship_matching(student, teacher, labels, margin=4.0).loss
    for margin in (1e300, torch.inf):
        assert relationship_matching(student, teacher, labels, margin=margin).loss == want
