"""The student over time and the teacher: accuracies are those of the run, pictures show what they say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gkd_plugin.diagnose.embedding import Panel, draw, ncm_top1, project, report_embedding, shown_samples
from gkd_plugin.diagnose.figures import LeftOut
from gkd_plugin.runner.run_folder import RunFolder
from gkd_plugin.teacher.readouts import LocalClassifier


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_report(run, tmp_path, projection):
    made = report_embedding(run, tmp_path, projection)
    assert {path.name for path in tmp_path.iterdir()} == {"embedding.png", "embedding.svg"}
    assert (made["projection"], made["on"], made["classes_shown"]) == (projection, "validation", [0, 1, 2, 3])
    panels = made["panels"]
    assert list(panels) == ["before_training", "after_embedding", "final", "teacher"]
    summary = json.loads((run.folder.path / "summary.json").read_text("utf-8"))
    assert panels["after_embedding"]["ncm_top1"] == pytest.approx(summary["stages"]["stage1"]["epochs"][-1]["ncm_top1"])
    assert panels["teacher"]["ncm_top1"] == pytest.approx(summary["teacher"]["ncm_top1"])
    for panel in panels.values():
        assert (panel["explained_variance"] is None) == (projection == "tsne")


def test_before_training_and_final_are_of_those_weights(run, tmp_path):
    made = report_embedding(run, tmp_path)["panels"]
    for key, weights in (("before_training", None), ("final", run.folder.student)):
        run.load_student(weights)
        embeddings, labels = {}, {}
        for images in (run.train, run.validation):
            batches = list(images.loader)
            with torch.no_grad():
                features = run.student.forward_features(torch.cat([batch[0] for batch in batches]))
                embeddings[images.name] = run.student.forward_head(features, pre_logits=True)
            labels[images.name] = torch.cat([batch[1] for batch in batches])
        centres = torch.stack([embeddings["train"][labels["train"] == k].mean(0) for k in range(4)])
        cosine = torch.nn.functional.cosine_similarity(embeddings["validation"][:, None], centres[None], dim=2)
        right = (cosine.argmax(1) == labels["validation"]).double().mean().item()
        assert made[key]["ncm_top1"] == pytest.approx(100 * right)


def test_without_weights_after_the_stage_that_panel_is_missing(run, tmp_path):
    folder = RunFolder(tmp_path)
    folder.student.write_bytes(run.folder.student.read_bytes())
    made = report_embedding(replace(run, folder=folder), tmp_path)
    assert list(made["panels"]) == ["before_training", "final", "teacher"]
    made = report_embedding(replace(run, embedding_stage=None), tmp_path)
    assert list(made["panels"]) == ["before_training", "final", "teacher"]


def test_left_out(run, tmp_path):
    with pytest.raises(LeftOut, match=r"^the student's embedding is not known: "):
        report_embedding(replace(run, embedding_path=None), tmp_path)
    with pytest.raises(LeftOut, match=r"^there are no validation images \(val_data_loader\)"):
        report_embedding(replace(run, validation=None), tmp_path)
    unfitted = SimpleNamespace(local_classifier=LocalClassifier())
    with pytest.raises(LeftOut, match=r"^a class has no training sample, so there are no class centres"):
        report_embedding(replace(run, teacher=unfitted), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_at_most_ten_classes_spread_over_all_and_200_samples_of_each():
    labels = np.repeat(np.arange(100), 3)
    shown = labels[shown_samples(labels)]
    assert sorted(set(shown)) == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert len(shown) == 30
    assert shown_samples(np.array([5, 2, 5])).tolist() == [0, 1, 2]
    assert shown_samples(np.zeros(300)).tolist() == list(range(200))


def test_pca_is_of_the_normalised_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    points, explained = project(rows, "pca", 0)
    unit = rows / rows.norm(dim=1, keepdim=True)
    centred = unit - unit.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    assert explained == pytest.approx(float(values[:2].sum() / values.sum()))
    assert (points**2).sum(0) == pytest.approx(values[:2].numpy())
    assert np.allclose(np.abs(project(7 * rows, "pca", 0)[0]), np.abs(points))


def test_tsne_repeats_itself_and_too_little_makes_no_picture():
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    (first, explained), (second, _) = project(rows, "tsne", 1), project(rows, "tsne", 1)
    assert first.shape == (12, 2)
    assert explained is None
    assert np.array_equal(first, second)
    for few, narrow in ((2, 5), (9, 1)):
        with pytest.raises(LeftOut, match=f"^{few} samples in {narrow} dimensions make no picture$"):
            project(torch.ones(few, narrow), "pca", 0)


def test_the_legend_of_ten_long_names_and_three_panels_lies_inside_the_figure():
    points, labels = np.random.default_rng(0).normal(size=(100, 2)), np.arange(100) % 10
    names = [f"american_pit_bull_terrier_{k}" for k in range(10)]
    figure = draw([Panel(title, points, labels, 50.0, 0.5) for title in "abc"], names, "PCA")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_ncm():
    centres = torch.eye(2)
    embedding = torch.tensor([[3.0, 1.0], [0.1, 0.2], [5.0, 6.0], [2.0, 1.0]])
    assert ncm_top1(embedding, torch.tensor([0, 1, 0, 0]), centres) == 75
