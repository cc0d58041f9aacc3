from gkd_plugin.config.config import load_config
from tests.benchmarks.photos import CONFIG, table

HEAD = "method,seed,top1,seconds\n"


def test_the_table_pairs_by_subset(tmp_path):
    for subset, ours in ((0, 62.0), (1, 66.0)):
        folder = tmp_path / f"subset{subset}"
        folder.mkdir()
        rows = f"ce,{subset},60.0,30\nkd,{subset},,\nrefilled-joint,{subset},{ours},40\n"
        (folder / "results.csv").write_text(HEAD + rows, encoding="utf-8")
    lines = [line.split("  ") for line in table(tmp_path).splitlines()[2:]]
    found = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert found == [["ce", "60.0 ± 0.0", "2", "30"], ["refilled-joint", "64.0 ± 2.0", "+4.0 ± 2.0", "2", "40"]]


def test_the_configuration_is_valid_with_and_without_photos_without_labels():
    mixed = ["x-dataset=own/mixed", "x-batches={key: MixedBatchSampler, kwargs: {labelled: 8, unlabelled: 8}}"]
    for changes in ([], [*mixed, "x-loader={num_workers: 0}", "x-shots=30"]):
        assert [stage.kind for stage in load_config(CONFIG, changes, produced=None).stages] == ["joint"]
