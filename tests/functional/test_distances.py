"""Distances by matrix products, and the way back to the embedding."""

import pytest
import torch

from gkd_plugin.functional._distances import Distances, Normalised, full_precision_products


def exact(rows):
    return torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize(("size", "width"), [(5, 3), (67, 16), (300, 33), (513, 512)])
def test_agree_with_differences_and_equal_rows_are_at_distance_zero(size, width, hold):
    rows = torch.randn(size, width, generator=torch.Generator().manual_seed(size))
    rows[size // 2] = rows[0]
    rows[-1] = rows[1]
    rows = Normalised.of(rows).rows
    distances = Distances(rows, hold)
    got = torch.cat([distances.tile(0, 3), distances.tile(3, size)])
    assert (got - exact(rows)).abs().max() < (1e-6 if hold else 1e-3)  # √ε where a tile rounds a square otherwise
    if hold:
        assert got[0, size // 2] == got[size // 2, 0] == got[1, -1] == 0
        torch.testing.assert_close(got, got.T, rtol=0, atol=1e-6)
        assert torch.equal(got.diagonal(), torch.zeros(size))


def test_centring_keeps_the_digits_of_a_narrow_cone():
    """Rows behind a ReLU, all within a few degrees: distances keep six digits, where 2 − 2·XXᵀ keeps three."""
    rows = 1 + 0.01 * torch.rand(64, 128, generator=torch.Generator().manual_seed(0))
    directions = Normalised.of(rows).rows
    got = Distances(directions, hold=True).tile(0, 64)
    plain = (2 - 2 * directions @ directions.T).clamp(min=0).sqrt()
    want, apart = exact(directions), ~torch.eye(64, dtype=torch.bool)
    assert ((got - want).abs() / want)[apart].max() < 1e-5
    assert ((plain - want).abs() / want)[apart].max() > 1e-4


def test_the_way_back_is_that_of_autograd():
    embedding = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(6, 4, dtype=torch.float64)
    torch.nn.functional.normalize(embedding, dim=1).backward(gradient)
    got = Normalised.of(embedding.detach()).embedding_gradient(gradient.clone())
    torch.testing.assert_close(got, embedding.grad, rtol=1e-13, atol=1e-15)


def test_a_row_of_zeros_stays_one_and_has_no_gradient():
    normalised = Normalised.of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    torch.testing.assert_close(normalised.rows, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert normalised.embedding_gradient(torch.ones(2, 2))[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_an_exact_power_of_two(dtype):
    limits = torch.finfo(dtype)
    exponents = torch.arange(round(torch.tensor(limits.tiny).log2().item()) if dtype == torch.float32 else -1022, 128)
    embedding = torch.pow(torch.tensor(2.0, dtype=torch.float64), exponents.double()).to(dtype).unsqueeze(1)
    normalised = Normalised.of(embedding * torch.tensor([1.0, -1.5], dtype=dtype))
    assert torch.equal(normalised.scale.double().log2(), normalised.scale.double().log2().round())
    largest = (embedding * 1.5 * normalised.scale).squeeze(1)
    within = embedding.squeeze(1) >= limits.tiny / limits.eps**2
    assert ((largest >= 2) & (largest < 4))[within].all()
    torch.testing.assert_close(normalised.rows[within].norm(dim=1), torch.ones_like(largest[within]))


@pytest.mark.parametrize("newer", [False, True], ids=["older switch", "newer switch"])
def test_products_are_in_full_precision_by_either_switch(newer):
    """torch's older and newer switches exclude one another: reading the older one raises where the newer was used."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        if newer:
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        with full_precision_products():
            assert matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        if newer:
            with pytest.raises(RuntimeError):
                torch.get_float32_matmul_precision()
        else:
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        matmul.fp32_precision = before
        if not newer:
            torch.set_float32_matmul_precision("highest")
    assert torch.get_float32_matmul_precision() == "highest"
