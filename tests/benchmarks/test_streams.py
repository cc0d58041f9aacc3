from tests.benchmarks.streams import measure


def test_a_run_of_generated_samples(tmp_path):
    row = measure(400, tmp_path)
    assert (row["samples"], row["MiB"] > 0) == (400, True)
