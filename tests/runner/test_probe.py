"""Classifiers fitted to the frozen teacher's embeddings."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader, TensorDataset

from gkd_plugin.config.config import load_config
from gkd_plugin.errors import ConfigError
from gkd_plugin.models import timm_model
from gkd_plugin.runner.probe import PROBES, run_probe
from tests.fakes import TinyImages
from tests.runner.fakes import REFILLED, TEST, write_configs


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A folder with an untrained teacher's weights; training images and test images of four classes."""
    folder = tmp_path_factory.mktemp("probe")
    write_configs(folder)
    torch.manual_seed(0)
    model = timm_model("test_resnet", num_classes=4)
    (folder / "runs/teacher").mkdir(parents=True)
    torch.save(model.state_dict(), folder / "runs/teacher/teacher.pt")
    return folder, model.eval()


@pytest.fixture
def here(configured, monkeypatch):
    monkeypatch.chdir(configured[0])
    return configured


def ran(tmp_path, probe, *sets):
    data = "train.stage1.teacher.auxiliary_model_wrapper={key: refilled_teacher, kwargs: {preprocessing: data}}"
    return run_probe(load_config("student.yaml", [data, *sets]), tmp_path / "run", probe, seed=3, device="cpu")


@torch.no_grad()
def embedded(model, seed):
    """Rows of length 1, straight from timm."""
    images = TinyImages(classes=4, per_class=6, seed=seed)
    rows = model.forward_head(model.forward_features(images.images), pre_logits=True).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), np.array(images.targets)


def test_logistic_regression_is_scikit_learns(here, tmp_path):
    (rows, labels), (test_rows, test_labels) = (embedded(here[1], seed) for seed in (0, 2))
    fit = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced").fit(rows, labels)
    expected = fit.score(test_rows, test_labels)
    assert ran(tmp_path, "logistic_regression")["final"]["top1"] == pytest.approx(100 * expected)


def test_logistic_regression_weighs_classes_and_not_samples():
    """Three samples of a class beside sixty of one that overlaps with it: unweighted, it is hardly ever predicted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 3 + [1] * 60)
    rows = torch.nn.functional.normalize(torch.randn(63, 4, generator=generator) + labels[:, None], dim=1)
    loader = DataLoader(TensorDataset(rows, labels), batch_size=16)
    teacher = SimpleNamespace(embed=lambda images: images)
    score = PROBES["logistic_regression"](teacher, loader, 2, Accelerator(cpu=True))
    got = score(rows)[:, 0].numpy()
    balanced, plain = (
        LogisticRegression(max_iter=1000, class_weight=weight).fit(rows.double().numpy(), labels.numpy())
        for weight in ("balanced", None)
    )
    np.testing.assert_allclose(got, balanced.predict_proba(rows.double().numpy())[:, 0], rtol=1e-4)
    assert (plain.predict_proba(rows.double().numpy())[:, 0] < got).all()


def test_nearest_class_mean_by_hand(here, tmp_path):
    (rows, labels), (test_rows, test_labels) = (embedded(here[1], seed) for seed in (0, 2))
    centres = np.stack([rows[labels == k].mean(0) for k in range(4)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    expected = ((test_rows @ centres.T).argmax(1) == test_labels).mean()
    assert ran(tmp_path, "ncm")["final"]["top1"] == pytest.approx(100 * expected)


def test_nearest_class_mean_fits_no_discriminant(here, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    kwargs = "train.stage1.teacher.auxiliary_model_wrapper.kwargs={preprocessing: data, local_classifier: discriminant}"
    ran(tmp_path, "ncm", kwargs)
    assert "class centres" in caplog.text
    assert "held-out accuracy" not in caplog.text


def test_it_leaves_a_run_folder(here, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    summary = ran(tmp_path, "ncm")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "log.txt", "summary.json"}
    assert json.loads((folder / "summary.json").read_text("utf-8")) == summary
    assert (summary["status"], summary["seed"], summary["probe"], summary["final"]["on"]) == (
        "finished",
        3,
        "ncm",
        "test",
    )
    assert "ncm on the frozen network: top-1 on the test set" in (folder / "log.txt").read_text("utf-8")


def test_a_class_without_a_sample_is_never_the_answer_of_logistic_regression(here, tmp_path):
    summary = ran(tmp_path, "logistic_regression", "datasets.train.init.kwargs.classes=3")
    assert 0 <= summary["final"]["top1"] <= 75


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (TEST, "", r"has no test\.test_data_loader"),
        ("auxiliary_model_wrapper: {key: 'refilled_teacher'}", "", "the teacher has no wrapper 'refilled_teacher'"),
    ],
)
def test_what_it_cannot_probe(here, tmp_path, old, new, message):
    assert old in REFILLED
    path = tmp_path / "other.yaml"
    path.write_text(REFILLED.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"other\.yaml: {message}"):
        run_probe(load_config(path), tmp_path / "run", next(iter(PROBES)), device="cpu")
    assert not (tmp_path / "run").exists()
