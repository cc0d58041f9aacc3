"""Distances by matrix products, and the way back to the embedding."""

import pytest
import torch

from gkd_plugin.functional._distances import Distances, Normalised, full_precision_products


def distances(rows, hold):
    return Distances(Normalised.of(rows).rows, hold).tile(0, len(rows))


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize(("size", "width"), [(5, 3), (67, 16), (300, 33), (513, 512)])
def test_agree_with_differences_and_equal_rows_are_at_distance_zero(size, width, hold):
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(size, width, generator=generator)
    rows[size // 2] = rows[0]
    rows[-1] = rows[1]
    got = distances(rows, hold)
    directions = torch.nn.functional.normalize(rows.double(), dim=1)
    want = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    assert (got - want).abs().max() < 1e-6
    assert got[0, size // 2] == got[size // 2, 0] == got[1, -1] == 0
    torch.testing.assert_close(got, got.T, rtol=0, atol=1e-6)
    assert torch.equal(got.diagonal(), torch.zeros(size))


def test_centring_keeps_the_digits_of_a_narrow_cone():
    """Rows behind a ReLU, all within a few degrees: distances keep six digits, where 2 − 2·XXᵀ keeps three."""
    generator = torch.Generator().manual_seed(0)
    rows = 1 + 0.01 * torch.rand(64, 128, generator=generator)
    directions = Normalised.of(rows).rows
    exact = torch.cdist(directions.double(), directions.double(), compute_mode="donot_use_mm_for_euclid_dist")
    got = distances(rows, hold=True)
    plain = (2 - 2 * directions @ directions.T).clamp(min=0).sqrt()
    apart = ~torch.eye(64, dtype=torch.bool)
    assert ((got - exact).abs() / exact)[apart].max() < 1e-5
    assert ((plain - exact).abs() / exact)[apart].max() > 1e-4


def test_the_way_back_is_that_of_autograd():
    embedding = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(6, 4, dtype=torch.float64)
    torch.nn.functional.normalize(embedding, dim=1).backward(gradient)
    got = Normalised.of(embedding.detach()).embedding_gradient(gradient.clone())
    torch.testing.assert_close(got, embedding.grad, rtol=1e-13, atol=1e-15)


def test_a_row_of_zeros_stays_one_and_has_no_gradient():
    normalised = Normalised.of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert normalised.rows.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert normalised.embedding_gradient(torch.ones(2, 2))[0].tolist() == [0.0, 0.0]


def test_products_are_in_full_precision_by_either_switch():
    """torch's older and newer switches exclude one another: reading the older one raises where the newer was used."""
    newer = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision_products():
            assert newer.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    before = newer.fp32_precision
    newer.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with full_precision_products():
            assert newer.fp32_precision == "ieee"
        assert newer.fp32_precision == "tf32"
    finally:
        newer.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
