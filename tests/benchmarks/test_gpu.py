from tests.benchmarks import gpu
from tests.benchmarks.relationship import METHODS


def test_every_loss_has_a_row_also_where_it_does_not_fit(monkeypatch):
    monkeypatch.setattr("tests.benchmarks.relationship.ROUNDS", 1)

    def full(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(METHODS, "RKD", full)
    rows = list(gpu.losses([32], "cpu"))
    assert [row[3] for row in rows] == list(gpu.LOSSES)
    assert [row[4] for row in rows if row[3] == "RKD"] == ["RuntimeError"]
    assert all(float(row[4]) > 0 for row in rows if row[3] != "RKD")
