"""One grid that many tests look at: every method where the classes are shared."""

import os
from collections import namedtuple

import pytest
import torch

from gkd_plugin.compare.compare import Comparison, compare
from gkd_plugin.compare.method import method_names
from gkd_plugin.config.overrides import apply_overrides
from gkd_plugin.config.tree import compose_file, plain_tree
from tests.compare.fakes import TINY, write_config

METHODS = [name for name in method_names() if name not in ("scratch", "student-ncm", "lwf", "joint-training")]
Grid = namedtuple("Grid", "folder comparison table results")


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as each of two processes
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = write_config(folder).relative_to(folder)
        wanted = Comparison(config, methods=METHODS, seeds=[0], overlaps=[100.0], output=folder / "grid", device="cpu")
        made = Grid(folder, wanted, *compare(wanted))
    torch.set_num_threads(threads)
    return made


@pytest.fixture
def here(written, tmp_path):
    """The same configuration and teacher in a new folder."""
    written()
    return tmp_path


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a configuration and its teacher, and gives its tree with some overrides."""
    monkeypatch.chdir(tmp_path)

    def make(*overrides, tree=TINY):
        root = compose_file(write_config(tmp_path, tree))
        apply_overrides(root, overrides)
        return plain_tree(root, "tiny.yaml")

    return make


@pytest.fixture
def compared(here):
    """Compares in that folder: one seed, one epoch for each stage, unless told otherwise."""

    def run(methods, config="tiny.yaml", **changes):
        given = {"seeds": [0], "output": here / "grid", "device": "cpu", "overrides": ["train.stage2.num_epochs=1"]}
        return compare(Comparison(here / config, methods, **{**given, **changes}))

    return run
