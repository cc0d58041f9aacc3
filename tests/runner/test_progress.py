"""Running means of an epoch and the bar that shows them."""

import io

import pytest
import torch

from gkd_plugin.runner import progress
from gkd_plugin.runner.progress import EpochProgress


def test_means_over_the_batches():
    with EpochProgress([1, 2, 3], "stage1 1/2", disable=True) as bar:
        for batch in bar:
            bar.update(2.0 * batch, {"tuples": torch.tensor(batch)}, lr=0.1, images=4)
    assert bar.means() == {"loss": 4.0, "tuples": 2.0}
    assert bar.images_per_second() > 0


def test_no_batch_at_all():
    with EpochProgress([], "x", disable=True) as bar:
        assert list(bar) == []
    assert bar.means() == {}
    assert bar.images_per_second() == 0


def test_the_bar_shows_terms_learning_rate_and_speed(monkeypatch):
    stream = io.StringIO()
    plain = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda *args, **kwargs: plain(*args, file=stream, mininterval=0, **kwargs))
    with EpochProgress([0, 1], "stage1 1/2", disable=False) as bar:
        for _ in bar:
            bar.update(1.5, {"relationship": torch.tensor(0.25)}, lr=0.05, images=4)
    for part in ("stage1 1/2", "loss=1.5", "relationship=0.25", "lr=0.05", "img/s="):
        assert part in stream.getvalue()


def test_the_bar_is_closed_after_an_error(monkeypatch):
    bar = EpochProgress([1], "x", disable=False)
    with pytest.raises(RuntimeError), bar:
        raise RuntimeError
    assert bar._bar.disable
