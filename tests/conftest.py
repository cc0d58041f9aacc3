"""Tests run in as many processes as there are cores (pytest-xdist): each then computes with one thread."""

import logging
import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # machines are shared: time decides no test
settings.load_profile("untimed")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory):
    os.environ["TORCH_HOME"] = str(tmp_path_factory.mktemp("torch"))


@pytest.fixture(autouse=True)
def _level_of_the_log():
    """Every test begins with that of Python, whatever a fixture or a test before it has set."""
    logging.getLogger().setLevel(logging.WARNING)
