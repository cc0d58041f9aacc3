import pytest

from gkd_plugin.compare.grid_folder import check_grid_folder
from gkd_plugin.compare.plot import plot_names
from gkd_plugin.compare.report import write_csv
from gkd_plugin.errors import ConfigError
from tests.compare.results import RESULTS


def test_what_a_comparison_has_written_may_be_written_again(tmp_path):
    check_grid_folder(tmp_path / "new")
    check_grid_folder(tmp_path)
    write_csv(RESULTS, tmp_path / "results.csv")
    for name in ("table.txt", plot_names()[0]):
        (tmp_path / name).write_text("")
    for cell in ("overlap50/ce", "ways5/ce/task3"):
        (tmp_path / cell).mkdir(parents=True)
        (tmp_path / cell / "config.yaml").write_text("")
    check_grid_folder(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "results.csv").unlink()
    check_grid_folder(tmp_path)  # still that of a grid
    (tmp_path / "results.csv").write_text("mine,1")
    with pytest.raises(ConfigError, match=r"holds 'results\.csv', which is of no comparison"):
        check_grid_folder(tmp_path)


def test_a_log_may_be_there_already(tmp_path):
    (tmp_path / "console.log").touch()
    check_grid_folder(tmp_path)


@pytest.mark.parametrize("name", ["thesis.tex", "results.csv", "photos/1.jpg", "config.yaml", "digits/config.yaml"])
def test_a_folder_of_something_else_is_refused(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine,1")
    first = name.partition("/")[0]
    with pytest.raises(ConfigError, match=f"^--output: .* holds '{first}', which is of no comparison; name a new fold"):
        check_grid_folder(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^--output: .*file is a file$"):
        check_grid_folder(tmp_path / "file")
