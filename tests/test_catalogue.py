"""What there is to choose from: the shipped configurations, and timm's models."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from gkd_plugin import catalogue
from gkd_plugin.cli import ABOUT, _parser, main

ROOT = Path(__file__).parent.parent
DIGITS = sorted(path.name for path in (ROOT / "configs/digits").iterdir())


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without configs/."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [["configs"], ["configs", "list"]])
def test_every_configuration_is_listed_with_a_sentence(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == sorted(tree(ROOT / "configs"))
    sentences = dict(zip(lines[::2], lines[1::2], strict=True))
    assert sentences["digits/digits_teacher.yaml"].startswith("    The teacher: a ResNet-10-T learns the odd digits ")
    assert all(re.fullmatch(r"    \S.{15,}[.:]", sentence) for sentence in sentences.values())


@pytest.mark.parametrize(
    "name", ["digits_ce", "digits_ce.yaml", "digits/digits_ce.yaml", "configs/digits/digits_ce.yaml"]
)
def test_a_configuration_is_shown(name, capsys):
    assert main(["configs", "show", name]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/digits/digits_ce.yaml").read_text("utf-8") + "\n"


def test_a_folder_is_copied_to_where_its_commands_look_for_it(tmp_path, capsys):
    for words in (["configs", "copy", "digits"], ["configs", "copy", "dist-tuned.yaml"]):
        assert main(words) == 0
    copied = {path: text for path, text in tree(ROOT / "configs").items() if "digits/" in path or "dist-tuned" in path}
    assert tree(tmp_path / "configs") == copied
    assert capsys.readouterr().out.splitlines()[: len(DIGITS)] == [f"configs/digits/{name}" for name in DIGITS]
    commands = ["configs/digits/digits_teacher.yaml", "configs/digits/digits_refilled.yaml"]
    assert main(["check", "--no-build", *commands]) == 0


def test_what_differs_is_not_overwritten(tmp_path, capsys):
    mine = tmp_path / "configs/digits/digits_joint.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine\n")
    assert main(["configs", "copy", "digits"]) == 2
    assert re.search("configs/digits/digits_joint.yaml .* line 1 says 'mine', not '# ", capsys.readouterr().err)
    assert tree(tmp_path) == {"configs/digits/digits_joint.yaml": b"mine\n"}

    mine.unlink()
    assert main(["configs", "copy", "digits_joint.yaml"]) == 0
    assert main(["configs", "copy", "digits"]) == 0
    assert capsys.readouterr().out.count("(there already)") == 1
    assert sorted(path.name for path in mine.parent.iterdir()) == DIGITS


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["configs", "copy", "digit"], "NAME: .*'digit'.*'digits'"),
        (["configs", "show", "digits_jiont.yaml"], "NAME: .*'digits_joint'"),
        (["configs", "list", "imagefolder"], "NAME: .*'image_folder'"),
        (["configs", "copy"], "NAME: "),
        (["models", "resnett50"], "PATTERN: .*'resnett50'.*'resnet50'"),
    ],
)
def test_a_wrong_name_gives_the_nearest(words, named, tmp_path, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"refilled: error: {named}", line)
    assert list(tmp_path.iterdir()) == []


def rows(capsys):
    return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("pattern", ["test_resnet", "test_resn*t", "test_resnet.r160_in1k"])
def test_models_are_described_as_timm_builds_them(pattern, capsys):
    assert main(["models", pattern]) == 0
    model = timm.create_model("test_resnet")
    parameters = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
    assert rows(capsys)[2:] == [["test_resnet", parameters, str(model.head_hidden_size), "160", "r160_in1k"]]


def test_the_default_weights_come_first(capsys):
    assert main(["models", "vit_base_patch16_rope_reg1*"]) == 0
    assert rows(capsys)[2][4] == "sbb_in1k"
    assert main(["models", "tf_efficientnetv2_s"]) == 0
    tags = rows(capsys)[2][4].split(", ")
    assert tags[0] == timm.get_pretrained_cfg("tf_efficientnetv2_s").tag
    assert {f"tf_efficientnetv2_s.{tag}" for tag in tags} == set(timm.list_pretrained("tf_efficientnetv2_s.*"))


def test_of_many_models_the_first_are_shown(capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "MOST_MODELS", 2)
    assert main(["models", "test_*"]) == 0
    *shown, last = rows(capsys)[2:]
    names = timm.list_models("test_*")
    assert [row[0] for row in shown] == names[:2]
    assert str(len(names) - 2) in last[0].split()


def test_every_example_of_the_first_screen_is_a_command(capsys):
    examples = re.findall(r"^  refilled (.*)$", ABOUT, re.MULTILINE)
    assert len(examples) >= 5
    for example in examples:
        options = _parser().parse_args(example.split())
        if options.name == "run":
            assert all((ROOT / config).is_file() for config in options.config)
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert ABOUT in bare
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert (ended.value.code, capsys.readouterr().out) == (0, bare)


@pytest.mark.parametrize(("typed", "offered"), [("refilled dis", ["distill"]), ("refilled run --ov", ["--overwrite"])])
def test_the_shell_completes(typed, offered, tmp_path):
    """As ``register-python-argcomplete`` asks, and without importing torch."""
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "COMP_TYPE": "9"}
    env = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "IFS": "\013"}
    script = "import sys, refilled, atexit; refilled.main()"
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60)
    assert [word.strip() for word in (tmp_path / "answer").read_text().split("\013")] == offered
