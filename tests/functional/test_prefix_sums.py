"""Prefix sums and the dense form on one shared matrix of distances, ties included, against the loops."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gkd_plugin.functional import MINING, _prefix_sums
from gkd_plugin.functional._tuples import SMALLEST_DISTANCE, ClassIndex, score_densely
from tests import reference

FORMS = pytest.mark.parametrize("form", [_prefix_sums.score_by_prefix_sums, score_densely])


def score(form, student, teacher, labels, mining="semihard", margin=0.2, temperature=4.0):
    """(divergence, tuples, negatives, pull)."""
    positives = ClassIndex(labels, wait=True).positives(0, len(labels))
    window = lambda near: MINING[mining](near, margin)  # noqa: E731
    return form(student.clone(), teacher.clone(), positives, window, temperature, need_gradient=True)


def grid(size, levels, generator):
    """A symmetric matrix of few different distances, in steps that float32 holds exactly; some are 0."""
    steps = torch.randint(levels + 1, (size, size), generator=generator)
    return ((steps + steps.T) / 64).fill_diagonal_(0)


@settings(deadline=None, max_examples=60)
@FORMS
@given(
    size=st.integers(1, 16),
    classes=st.integers(1, 4),
    levels=st.integers(1, 60),
    mining=st.sampled_from(sorted(MINING)),
    margin=st.integers(0, 40),
    temperature=st.sampled_from([4.0, 1.0, 0.3]),
    seed=st.integers(0, 1000),
)
@example(size=3, classes=3, levels=37, mining="all", margin=0, temperature=1.0, seed=347)  # one small gap, one tuple
def test_ties_on_a_shared_matrix(form, size, classes, levels, mining, margin, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = grid(size, levels, generator), grid(size, levels, generator)
    labels = torch.randint(classes, (size,), generator=generator)
    loss, tuples, negatives, gradient = reference.matched_distances(
        student.tolist(), teacher.tolist(), labels.tolist(), temperature, margin / 64, mining=mining
    )
    divergence, *counts, pull = score(form, student, teacher, labels, mining, margin / 64, temperature)
    assert [count.item() for count in counts] == [tuples, round(negatives * tuples)]
    assert divergence.item() == pytest.approx(loss * tuples, rel=1e-9, abs=1e-14)
    far = student > SMALLEST_DISTANCE
    want = torch.where(far, torch.tensor(gradient) * tuples / student.where(far, 1), 0)
    torch.testing.assert_close(pull.double(), want.double(), rtol=1e-6, atol=1e-9)


@FORMS
def test_a_margin_that_rounds(form):
    """d + 0.2 rounded is not always the largest x with x − d ≤ 0.2: the windows agree with the definition."""
    student = torch.rand(40, 40, generator=torch.Generator().manual_seed(3))
    labels, margin = torch.arange(40) % 4, torch.tensor(0.2)
    student[:, 1::4] = student[:, ::4] + margin
    student[:, 2::4] = torch.nextafter(student[:, 1::4], torch.tensor(9.0))
    student.fill_diagonal_(0)
    gap = student.unsqueeze(1) - student.unsqueeze(2)  # [anchor, positive, negative]
    same = labels.unsqueeze(1) == labels
    pair, other = same & ~torch.eye(40, dtype=torch.bool), ~same.unsqueeze(1)
    assert score(form, student, student, labels)[2] == ((gap > 0) & (gap <= margin) & pair.unsqueeze(2) & other).sum()


def test_the_way_of_adding_at_columns_on_a_gpu():
    columns, values = torch.tensor([[0, 2, 2], [1, 1, 1]]), torch.rand(2, 3)
    found = torch.zeros(2, 4)
    _prefix_sums._add_in_order(found, columns, values)
    torch.testing.assert_close(found, torch.zeros(2, 4).scatter_add_(1, columns, values))


@given(rows=st.integers(1, 70), width=st.integers(1, 40), levels=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_packed_sort_agrees_with_torchs_ties_included(rows, width, levels, seed):
    values = torch.randint(levels, (rows, width), generator=torch.Generator().manual_seed(seed)) / 4
    values[:, 0] = -1
    want, order = values.sort(dim=1, stable=True)
    got, columns = _prefix_sums._sort_rows(values)
    assert torch.equal(got, want)
    assert torch.equal(columns, order)
