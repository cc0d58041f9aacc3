"""Distances by matrix products."""

import pytest
import torch

from gkd_plugin.functional._distances import Distances, full_precision_products
from tests import reference


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize(("size", "width"), [(5, 3), (67, 16), (300, 33), (513, 512)])
def test_agree_with_differences_and_equal_rows_are_at_distance_zero(size, width, hold):
    rows = torch.randn(size, width, generator=torch.Generator().manual_seed(size))
    rows[size // 2] = rows[0]
    rows[-1] = rows[1]
    distances = Distances(rows, hold)
    got = torch.cat([distances.tile(0, 3), distances.tile(3, size)])
    limit = 1e-6 if hold else 1e-3  # √ε where a tile rounds a square otherwise
    assert (got - reference.distances(rows)).abs().max() < limit
    if hold:
        assert got[0, size // 2] == got[size // 2, 0] == got[1, -1] == 0
        torch.testing.assert_close(got, got.T, rtol=0, atol=1e-6)
        assert torch.equal(got.diagonal(), torch.zeros(size))


def test_centring_keeps_the_digits_of_a_narrow_cone():
    """Rows behind a ReLU, all within a few degrees: distances keep six digits, where 2 − 2·XXᵀ keeps three."""
    rows = 1 + 0.01 * torch.rand(64, 128, generator=torch.Generator().manual_seed(0))
    got, directions = Distances(rows, hold=True).tile(0, 64), torch.nn.functional.normalize(rows)
    plain = (2 - 2 * directions @ directions.T).clamp(min=0).sqrt()
    want, apart = reference.distances(rows), ~torch.eye(64, dtype=torch.bool)
    assert ((got - want).abs() / want)[apart].max() < 1e-5
    assert ((plain - want).abs() / want)[apart].max() > 1e-4


def test_products_are_in_full_precision_by_torchs_newer_switch_too():
    """It excludes the older one: reading that raises where the newer was used."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_precision_products():
            assert matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
    finally:
        matmul.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
