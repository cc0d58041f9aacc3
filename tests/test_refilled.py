"""The command starts at once: what it only has to say about itself imports nothing heavy."""

import argparse
import subprocess
import sys

import pytest

import gkd_plugin
import refilled

OPTIONS = {"capture_output": True, "text": True, "timeout": 60}
STARTED = """
import sys
import refilled
try:
    refilled.main(sys.argv[1:])
except SystemExit as ended:
    loaded = sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'torchvision', 'torchdistill', 'timm'})
    print(ended.code, loaded)
"""


def test_a_stop_while_it_imports_is_a_line(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopped)
    assert refilled.main(["run", "x.yaml"]) == 130
    assert capsys.readouterr().err == "refilled: stopped by SIGINT\n"


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (["--help"], 0, "COMMAND"),
        (["run", "--help"], 0, "--seed"),
        (["evaluate", "--help"], 0, "--checkpoint"),
        (["compare", "--help"], 0, "--score"),
        (["diagnose", "--help"], 0, "--projection"),
        (["export", "--help"], 0, "torch-export"),
        (["--version"], 0, f"refilled {gkd_plugin.__version__}\n"),
        (["fly"], 2, "'fly' is unknown"),
        (["compare", "x.yaml", "--output", "x", "--score", "top2"], 2, "'top2' is unknown"),
    ],
)
def test_no_heavy_import_before_there_is_something_to_do(words, code, shown):
    result = subprocess.run([sys.executable, "-c", STARTED, *words], check=True, **OPTIONS)
    assert shown in result.stdout + result.stderr
    assert result.stdout.endswith(f"{code} []\n")


def test_a_command_runs_in_the_package(tmp_path):
    command = [sys.executable, "-m", "refilled", "run", str(tmp_path / "nowhere.yaml")]
    result = subprocess.run(command, check=False, **OPTIONS)
    line = f"refilled: error: {tmp_path}/nowhere.yaml: No such file or directory\n"
    assert (result.returncode, result.stderr) == (2, line)
