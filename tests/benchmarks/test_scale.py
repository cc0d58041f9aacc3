from tests.benchmarks import scale


def test_a_run_is_measured(tmp_path):
    scale.main(["--output", str(tmp_path), "--images", "64", "--processes", "--set", "x-batch=16"])
    header, row = (tmp_path / "scale.csv").read_text(encoding="utf-8").splitlines()
    found = dict(zip(header.split(","), map(float, row.split(",")), strict=True))
    assert (found["images"], found["processes"]) == (64, 1)
    assert min(found.values()) > 0
