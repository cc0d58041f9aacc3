"""Several configurations in turn."""

import json
from pathlib import Path

import pytest

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner import batch
from gkd_plugin.runner.batch import run_all
from tests.runner.fakes import write_configs


@pytest.fixture
def configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_configs(tmp_path)


@pytest.fixture
def planned(monkeypatch):
    """The runs that would be made, none of which is."""
    made = []
    monkeypatch.setattr(batch, "run_config", lambda config, options: made.append((config, options)))
    return made


def checkpoints(config):
    return {
        f"{name}.{key}": entry[key]
        for name, entry in config.tree["models"].items()
        for key in ("src_ckpt", "dst_ckpt")
        if key in entry
    }


def test_a_later_configuration_loads_what_an_earlier_one_wrote(configs):
    summaries = run_all(configs, device="cpu")
    assert [summary["status"] for summary in summaries] == ["finished", "finished"]
    assert {path.name for path in Path("runs").iterdir()} == {"teacher", "student"}


def test_output_moves_the_checkpoints_along(configs):
    run_all(configs, output=Path("out"), device="cpu", seed=7)
    assert not Path("runs").exists()
    assert Path("out/teacher/teacher.pt").is_file()
    assert Path("out/student/student.pt").is_file()
    assert json.loads(Path("out/student/summary.json").read_text("utf-8"))["seed"] == 7
    assert "src_ckpt: out/teacher/teacher.pt" in Path("out/student/config.yaml").read_text("utf-8").replace('"', "")
    run_all([Path("out/student/config.yaml")], output=Path("again"), device="cpu", seed=7)
    first, second = (Path(name, "student.safetensors").read_bytes() for name in ("out/student", "again"))
    assert first == second


def test_the_earlier_run_is_kept(configs):
    for seed in (1, 2):
        run_all(configs[:1], device="cpu", seed=seed)
    seeds = [json.loads(Path(f"runs/{n}/summary.json").read_text())["seed"] for n in ("teacher.previous", "teacher")]
    assert seeds == [1, 2]


def test_where_each_configuration_would_write(configs, planned):
    run_all(configs)
    run_all(configs, output=Path("out"))
    run_all(configs[:1], output=Path("one"))
    assert [str(options.output) for _, options in planned] == [
        "runs/teacher",
        "runs/student",
        "out/teacher",
        "out/student",
        "one",
    ]
    assert [checkpoints(config) for config, _ in planned] == [
        {"model.dst_ckpt": "runs/teacher/teacher.pt"},
        {"teacher_model.src_ckpt": "runs/teacher/teacher.pt", "student_model.dst_ckpt": "runs/student/student.pt"},
        {"model.dst_ckpt": "out/teacher/teacher.pt"},
        {"teacher_model.src_ckpt": "out/teacher/teacher.pt", "student_model.dst_ckpt": "out/student/student.pt"},
        {"model.dst_ckpt": "one/teacher.pt"},
    ]
    assert all(config.notices == () for config, _ in planned)


def test_paths_are_one_however_they_are_spelt(configs, planned):
    text = configs[1].read_text("utf-8").replace("'runs/teacher/teacher.pt'", "'./runs//teacher/teacher.pt'")
    configs[1].write_text(text, encoding="utf-8")
    run_all(configs, output=Path("a dir: # 1"))
    assert checkpoints(planned[1][0])["teacher_model.src_ckpt"] == "a dir: # 1/teacher/teacher.pt"


def test_a_destination_elsewhere_stays_there(configs, planned):
    run_all(configs[:1], overrides=["models.model.dst_ckpt=elsewhere/w.pt"], output=Path("out"))
    assert checkpoints(planned[0][0]) == {"model.dst_ckpt": "elsewhere/w.pt"}


def test_a_run_does_not_load_what_it_is_going_to_write(configs, planned):
    """Going on from an earlier run's weights, in a new folder."""
    Path("runs/teacher").mkdir(parents=True)
    Path("runs/teacher/teacher.pt").write_bytes(b"")
    text = configs[0].read_text("utf-8").replace("dst_ckpt:", "src_ckpt: 'runs/teacher/teacher.pt'\n    dst_ckpt:")
    configs[0].write_text(text, encoding="utf-8")
    run_all(configs[:1], output=Path("out"))
    assert checkpoints(planned[0][0]) == {
        "model.src_ckpt": "runs/teacher/teacher.pt",
        "model.dst_ckpt": "out/teacher.pt",
    }


def test_all_are_checked_before_the_first_one_runs(configs, planned):
    bad = configs[1].read_text("utf-8").replace("stage: 'classifier'", "stage: 'clasifier'")
    configs[1].write_text(bad, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"student\.yaml: .*there is no stage 'clasifier'; did you mean 'classifier'"):
        run_all(configs)
    with pytest.raises(ConfigError, match=r"^teacher\.yaml: --device: there is no device 'gpu' here"):
        run_all(configs, device="gpu")
    assert planned == []


@pytest.mark.parametrize("order", [[1], [1, 0]])
def test_a_teacher_that_nothing_wrote_yet(configs, planned, order):
    with pytest.raises(
        ConfigError, match=r"student\.yaml: models\.teacher_model\.src_ckpt: no such file: runs/teacher"
    ):
        run_all([configs[index] for index in order])
    assert planned == []


def test_folders_that_cannot_be_used(configs, planned, monkeypatch):
    Path("file").write_text("")
    for output, message in (
        ("file", "file is a file"),
        (".", r"\. holds the working directory"),
        ("..", "holds the w"),
    ):
        with pytest.raises(ConfigError, match=f"^--output: .*{message}"):
            run_all(configs[:1], output=Path(output))
    with pytest.raises(ConfigError, match="two configurations would write to runs/teacher"):
        run_all([configs[0], Path("elsewhere/teacher.yaml")])
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("precious")
    with pytest.raises(ConfigError, match=r"^--output: mine holds 'config\.yaml', and no earlier run"):
        run_all(configs[:1], output=Path("mine"))
    assert planned == []
