"""The packed sort against torch's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_plugin.functional import _sort


@given(rows=st.integers(1, 70), width=st.integers(1, 40), levels=st.integers(1, 9), seed=st.integers(0, 99))
def test_agrees_with_torch_ties_included(rows, width, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(levels, (rows, width), generator=generator) / 4
    values[:, 0] = -1
    got, columns = _sort.sort_rows(values)
    want, order = values.sort(dim=1, stable=True)
    assert torch.equal(got, want)
    assert torch.equal(columns, order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_works_without_numpy(dtype, monkeypatch):
    monkeypatch.setattr(_sort, "np", None)
    values = torch.rand(5, 7, dtype=dtype)
    got, columns = _sort.sort_rows(values)
    assert torch.equal(got, values.gather(1, columns))
    assert (got.diff(dim=1) >= 0).all()
