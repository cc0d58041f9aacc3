from tests.benchmarks.teacher import epochs, overhead


def test_overhead_of_the_same_work():
    assert overhead(rounds=1, size=32, batch=2, classes=3)["ratio"] > 0


def test_epochs_with_and_without_a_cache():
    rows = epochs("test_resnet", "test_resnet", views=2, per_class=4)
    assert [(row["stage"], row["epoch"]) for row in rows] == [(s, e) for s in ("stage1", "stage2") for e in (1, 2, 3)]
    assert [row["epoch"] for row in rows if "prepared_ratio" in row] == [1, 1]
