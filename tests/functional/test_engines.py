"""The three engines on one shared matrix of distances, ties included, against the loops."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gkd_plugin.functional._compiled import score_compiled
from gkd_plugin.functional._dense import score_densely
from gkd_plugin.functional._positives import ClassIndex
from gkd_plugin.functional._prefix_sums import score_by_prefix_sums
from gkd_plugin.functional._tile import Selection, Tile
from gkd_plugin.functional.mining import MINING
from tests import reference

ENGINES = {"compiled": score_compiled, "prefix sums": score_by_prefix_sums, "dense": score_densely}


def grid(size, levels, generator):
    """A symmetric matrix of few different distances, in steps that float32 holds exactly."""
    steps = torch.randint(1, levels + 1, (size, size), generator=generator)
    return ((steps + steps.T) / 64).fill_diagonal_(0)


@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("engine", ENGINES)
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
def test_ties_on_a_shared_matrix(engine, size, classes, levels, mining, margin, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = grid(size, levels, generator), grid(size, levels, generator)
    labels = torch.randint(classes, (size,), generator=generator)
    loss, tuples, negatives, gradient = reference.matched_distances(
        student.tolist(), teacher.tolist(), labels.tolist(), temperature, margin / 64, mining=mining
    )
    score = ENGINES[engine](
        Tile(student.clone(), teacher.clone(), ClassIndex(labels), 0),
        Selection(temperature, margin / 64, MINING[mining], None),
        True,
    )
    assert score.tuples.item() == tuples
    assert score.negatives.item() == round(negatives * tuples)
    assert score.divergence.item() == pytest.approx(loss * tuples, rel=1e-9, abs=1e-14)
    want = torch.tensor(gradient) * tuples / student.where(student > 0, 1)
    torch.testing.assert_close(score.pull.double(), want.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_margin_that_rounds(engine):
    """d + 0.2 rounded is not always the largest x with x − d ≤ 0.2: the windows agree with the definition."""
    generator = torch.Generator().manual_seed(3)
    student = torch.rand(40, 40, generator=generator)
    labels = torch.arange(40) % 4
    near = student[:, ::4].contiguous()
    student[:, 1::4] = near + torch.tensor(0.2)
    student[:, 2::4] = torch.nextafter(student[:, 1::4], torch.tensor(9.0))
    student.fill_diagonal_(0)
    index = ClassIndex(labels)
    score = ENGINES[engine](
        Tile(student.clone(), student.clone(), index, 0), Selection(4.0, 0.2, MINING["semihard"], None), False
    )
    margin = torch.tensor(0.2)
    count = 0
    for a in range(40):
        for p in range(40):
            if a != p and labels[a] == labels[p]:
                gap = student[a] - student[a, p]
                count += ((gap > 0) & (gap <= margin) & (labels != labels[a])).sum().item()
    assert score.negatives.item() == count
    assert score.pull is None


def test_the_vectorised_exponential():
    from gkd_plugin.functional._kernels import exponentials

    distances = torch.linspace(0, 2, 4001, dtype=torch.float32)
    for temperature in (0.15, 1.0, 4.0):
        result, powers = torch.empty(4001, dtype=torch.float64), torch.empty(4001, dtype=torch.float64)
        exponentials(distances.numpy(), 1 / temperature, result.numpy(), powers.numpy())
        want = torch.exp(-distances.double() * (1 / temperature))
        torch.testing.assert_close(result, want, rtol=4e-15, atol=0)
