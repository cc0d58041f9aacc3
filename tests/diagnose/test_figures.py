"""Pictures come as PNG and SVG and show what the figures say; the figures are those of the run."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from gkd_plugin.diagnose import figures
from gkd_plugin.diagnose.emphasis import report_emphasis
from gkd_plugin.diagnose.restore import LeftOut
from gkd_plugin.runner.curves import new_figure
from gkd_plugin.runner.run_folder import RunFolder
from tests.fakes import TinyImages


@pytest.fixture
def summary(run):
    return json.loads((run.folder.path / "summary.json").read_text("utf-8"))


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_both_formats_and_the_same_bytes_and_no_window(tmp_path):
    def line(folder, values):
        figure, ((axis,),) = new_figure(3, 2)
        axis.plot(values)
        figures.save_figure(figure, folder, "line")
        return [(folder / f"line.{suffix}").read_bytes() for suffix in ("png", "svg")]

    png, svg = line(tmp_path, [1, 2])
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert line(tmp_path, [1, 2]) == [png, svg]
    assert line(tmp_path, [2, 1])[0] != png
    assert not {f"matplotlib.backends.backend_{kit}" for kit in ("tkagg", "qtagg")} & set(sys.modules)


@pytest.mark.parametrize(
    ("report", "values", "reason"),
    [
        (figures.report_confusion, {"test": None}, "there are no test images"),
        (figures.report_embedding, {"embedding_path": None}, "the student's embedding is not known: "),
        (figures.report_embedding, {"validation": None}, r"there are no validation images \(val_data_loader\)"),
        (figures.report_embedding, {"without_sample": [3]}, "not measured: class 3 has no training sample$"),
        (partial(report_emphasis, known=[0]), {"without_sample": [3]}, "not measured: class 3 has no training sample$"),
    ],
)
def test_left_out(changed, tmp_path, report, values, reason):
    with pytest.raises(LeftOut, match=f"^{reason}"):
        report(changed(**values), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_count_tuples_alone(tmp_path):
    counted, other = ({"tuples": 3.0, "negatives": 2.5, "loss": 1.0}, {"loss": 1.0})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(map(json.dumps, [counted, other, counted])))
    assert figures.report_tuples(metrics, tmp_path) == {"epoch": [1, 2], "tuples": [3.0] * 2, "negatives": [2.5] * 2}
    assert names_in(tmp_path) == {"metrics.jsonl", "tuples.png", "tuples.svg"}
    metrics.write_text(json.dumps(other))
    for file in (metrics, tmp_path / "nowhere.jsonl"):
        with pytest.raises(LeftOut, match=rf"^no epoch in {file} counts tuples: "):
            figures.report_tuples(file, tmp_path)
    for damaged in ('{"tuples": 3.0, "neg', "[]", "{}\n\n{}"):
        metrics.write_text(damaged)
        with pytest.raises(LeftOut, match=rf"^{metrics} does not hold a JSON section in each line: "):
            figures.report_tuples(metrics, tmp_path)


def test_the_confusion_of_the_final_student(run, changed, summary, tmp_path):
    run.load_student(None)
    made = figures.report_confusion(run, tmp_path)
    assert names_in(tmp_path) == {"confusion.png", "confusion.svg"}
    assert made["top1"] == pytest.approx(summary["final"]["top1"])
    assert (made["on"], made["samples"], made["classes"]) == ("test", 24, ["0", "1", "2", "3"])
    assert [sum(row) for row in made["counts"]] == [6, 6, 6, 6]
    assert sum(pair["samples"] for pair in made["most_confused"]) == 24 - np.trace(made["counts"])
    for names, shown in (("ab", "ab23"), ("abcdef", "abcd")):  # filled up, or cut to the student's classes
        assert figures.report_confusion(changed(class_names=list(names)), tmp_path)["classes"] == list(shown)


def test_many_classes_are_drawn_without_names(tmp_path):
    for count, has_names, has_shares in ((12, True, True), (13, True, False), (41, False, False)):
        figures.draw_confusion(np.eye(count), [f"class {k}" for k in range(count)], "test", tmp_path)
        drawn = (tmp_path / "confusion.svg").read_text("utf-8")
        assert ("<!-- class 2 -->" in drawn, "<!-- 1.00 -->" in drawn) == (has_names, has_shares)


def test_most_confused():
    """A class without a sample confuses nothing."""
    counts = np.array([[8, 2, 0, 0], [1, 1, 0, 0], [3, 0, 97, 0], [0, 0, 0, 0]])
    pairs = [tuple(pair.values()) for pair in figures.most_confused(counts, list("abcd"))]
    assert pairs == [("b", "a", 1, 0.5), ("a", "b", 2, 0.2), ("c", "a", 3, 0.03)]
    assert len(figures.most_confused(1 - np.eye(6, dtype=int), list("abcdef"))) == 20


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_the_embedding_over_time(run, summary, tmp_path, projection):
    made = figures.report_embedding(run, tmp_path, projection)
    assert names_in(tmp_path) == {"embedding.png", "embedding.svg"}
    assert (made["projection"], made["on"], made["classes_shown"]) == (projection, "validation", [0, 1, 2, 3])
    panels = made["panels"]
    assert list(panels) == ["before_training", "after_embedding", "final", "teacher"]
    assert panels["after_embedding"]["ncm_top1"] == pytest.approx(summary["stages"]["stage1"]["epochs"][-1]["ncm_top1"])
    assert panels["teacher"]["ncm_top1"] == pytest.approx(summary["teacher"]["ncm_top1"])
    for panel in panels.values():
        assert (panel["explained_variance"] is None) == (projection == "tsne")
    drawn = (tmp_path / "embedding.svg").read_text("utf-8")
    for text in ("student after stage1", f"NCM {panels['final']['ncm_top1']:.1f} %", "4 of 4 classes"):
        assert text in drawn


def test_the_legend_lies_beside_the_panels(run, changed, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_figure", lambda figure, *_: kept.append(figure))
    for names in (run.class_names, ["long " * 30] * 4):
        kept: list = []
        figures.report_embedding(changed(class_names=names), tmp_path)
        kept[0].draw_without_rendering()
        box = kept[0].legends[0].get_window_extent()
        assert max(axis.get_tightbbox().x1 for axis in kept[0].axes) <= box.x0 < box.x1 <= kept[0].bbox.x1


def test_before_training_and_final_are_of_those_weights(run, tmp_path):
    made = figures.report_embedding(run, tmp_path)["panels"]
    labels = torch.tensor(TinyImages().targets)
    for key, weights in (("before_training", None), ("final", run.folder.student)):
        run.load_student(weights)
        with torch.no_grad():
            features = [run.student.forward_features(TinyImages(seed=seed).images) for seed in (0, 1)]
            train, validation = (run.student.forward_head(feature, pre_logits=True) for feature in features)
        centres = torch.stack([train[labels == k].mean(0) for k in range(4)])
        cosine = torch.nn.functional.cosine_similarity(validation[:, None], centres[None], dim=2)
        assert made[key]["ncm_top1"] == pytest.approx(100 * (cosine.argmax(1) == labels).double().mean().item())


def test_without_weights_after_the_stage_that_panel_is_missing(run, changed, tmp_path):
    folder = RunFolder(tmp_path)
    folder.student.write_bytes(run.folder.student.read_bytes())
    for values in ({"folder": folder}, {"embedding_stage": None}):
        made = figures.report_embedding(changed(**values), tmp_path)
        assert list(made["panels"]) == ["before_training", "final", "teacher"]


def test_at_most_ten_classes_spread_over_all_and_200_samples_of_each():
    labels = np.repeat(np.arange(100), 3)
    assert labels[figures.shown_samples(labels)].tolist() == [label for label in range(0, 100, 11) for _ in range(3)]
    assert figures.shown_samples(np.array([5] * 300 + [2])).tolist() == [*range(200), 300]


def test_pca_is_of_the_normalised_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    points, explained = figures.project(rows, "pca", 0)
    unit = rows / rows.norm(dim=1, keepdim=True)
    centred = unit - unit.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    assert explained == pytest.approx(float(values[:2].sum() / values.sum()))
    assert (points**2).sum(0) == pytest.approx(values[:2].numpy())


def test_tsne_repeats_itself_and_too_little_makes_no_picture():
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    (first, explained), (second, _) = figures.project(rows, "tsne", 1), figures.project(rows, "tsne", 1)
    assert (first.shape, explained) == ((12, 2), None)
    assert np.array_equal(first, second)
    for few, narrow in ((2, 5), (9, 1)):
        with pytest.raises(LeftOut, match=f"^{few} samples in {narrow} dimensions make no picture$"):
            figures.project(torch.ones(few, narrow), "pca", 0)
