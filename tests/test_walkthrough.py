"""docs/tutorial.md and docs/deploy.md, walked through: every command as printed, but tiny models and two epochs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import timm

from gkd_plugin import cli, recipe
from tests.data.fakes import image_tree
from tests.test_docs import ROOT, blocks, text_of

TUTORIAL, DEPLOY = ROOT / "docs/tutorial.md", ROOT / "docs/deploy.md"
TINY = {"tf_efficientnet_lite2": "test_resnet", "tf_efficientnet_lite0": "test_efficientnet"}
"""In place of those of the page: pretrained ones, as far as timm says, which are not downloaded."""


def commands(page):
    for block in blocks(page, "sh"):
        for line in re.split(r"&&|\n", block):
            words = shlex.split(line, comments=True)
            if words[:1] == ["refilled"]:
                more = ["--epochs", "2"] if words[1] == "distill" else []
                yield [TINY.get(word, word) for word in words[1:]] + more


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the photos that the pages speak of."""
    real = timm.create_model

    def without_downloads(model_name, pretrained=False, **kwargs):
        return real(model_name, pretrained and model_name.startswith("local-dir:"), **kwargs)

    monkeypatch.setattr(timm, "create_model", without_downloads)
    monkeypatch.setattr(recipe, "_check_reachable", lambda _: None)
    monkeypatch.chdir(tmp_path)
    for number, (part, count) in enumerate((("train", 8), ("validation", 3), ("test", 3), ("more", 2))):
        image_tree(tmp_path / "data/own" / part, "abcd", count, blue=number)  # no image is in two of them
    shutil.copytree("data/own/test", "pick")
    shutil.copytree("data/own/test/a", "photos")
    shutil.copy(next(Path("photos").iterdir()), "holiday.jpg")
    return tmp_path


def test_from_photos_to_files_for_other_programs(here):
    first, *others = commands(TUTORIAL)
    assert first[0] == "distill"
    assert cli.main(first) == 0
    (tree,) = [block for block in blocks(TUTORIAL, "text") if "metrics.jsonl" in block]
    made = re.findall(r"^[├└]── (\S+)", tree, re.MULTILINE)
    assert made
    assert [name for name in made if not (here / "runs/own" / name).exists()] == []
    shutil.copytree("runs/own", "runs/image_folder_joint")
    for words in [*others, *commands(DEPLOY)]:
        assert cli.main(words) == 0, words
    assert {path.name for path in Path("runs/own/export").iterdir()} >= set(
        re.findall(r"`(\w+\.(?:json|onnx|pt2|safetensors))`", text_of(TUTORIAL).partition("## Use")[2])
    )
