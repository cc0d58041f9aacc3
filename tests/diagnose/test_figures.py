"""Pictures come as PNG and SVG and show what the figures say; the figures are those of the run."""

import json
import sys

import numpy as np
import pytest
import torch

from gkd_plugin.diagnose.figures import (
    PALETTE,
    add_legend,
    draw_confusion,
    most_confused,
    new_figure,
    project,
    report_confusion,
    report_embedding,
    report_tuples,
    save_figure,
    shown_samples,
)
from gkd_plugin.diagnose.restore import LeftOut
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.run_folder import RunFolder


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def summary(run):
    return json.loads((run.folder.path / "summary.json").read_text("utf-8"))


# --- files and legends -----------------------------------------------------------------------------------------------


def line(folder, values):
    figure, ((axis,),) = new_figure(3, 2)
    axis.plot(values)
    save_figure(figure, folder, "line")
    return [(folder / f"line.{suffix}").read_bytes() for suffix in ("png", "svg")]


def test_both_formats_and_the_same_bytes_and_no_window(tmp_path):
    png, svg = line(tmp_path, [1, 2])
    assert png.startswith(b"\x89PNG")
    assert b"<svg" in svg
    assert line(tmp_path, [1, 2]) == [png, svg]
    assert line(tmp_path, [2, 1])[0] != png
    assert not {f"matplotlib.backends.backend_{kit}" for kit in ("tkagg", "qtagg")} & set(sys.modules)


@pytest.mark.parametrize("panels", [2, 3])
@pytest.mark.parametrize(
    ("names", "fewest_rows"),
    [
        (list("0123456789"), 1),
        ([f"american_bulldog_{k}" for k in range(10)], 2),
        ([f"{k} {'long ' * 30}" for k in range(10)], 4),
        (["one"], 1),
    ],
)
def test_a_legend_lies_inside_the_figure_and_off_the_axes(panels, names, fewest_rows):
    figure, ((*axes,),) = new_figure(3.4 * panels, 4.2, columns=panels)
    for name, colour in zip(names, PALETTE, strict=False):
        axes[0].scatter([0, 1], [1, 0], color=colour, label=name)
    handles, labels = axes[0].get_legend_handles_labels()
    add_legend(figure, handles, labels)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert box.y1 <= min(axis.get_tightbbox().y0 for axis in axes)
    assert len(legend.get_texts()) == len(names)
    rows = -(-len(names) // legend._ncols)
    assert rows >= fewest_rows
    assert panels < 3 or rows <= fewest_rows + 1
    assert figure.get_figheight() == pytest.approx(4.2 + 0.2 * (rows - 1))  # the axes do not shrink


# --- what there is nothing for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "values", "reason"),
    [
        (report_confusion, {"test": None}, "there are no test images"),
        (report_embedding, {"embedding_path": None}, "the student's embedding is not known: "),
        (report_embedding, {"validation": None}, r"there are no validation images \(val_data_loader\)"),
        (report_embedding, {"without_sample": [3]}, "not measured: class 3 has no training sample$"),
    ],
)
def test_left_out(changed, tmp_path, report, values, reason):
    with pytest.raises(LeftOut, match=f"^{reason}"):
        report(changed(**values), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not issubclass(LeftOut, ConfigError | OSError)  # it is no error of the user's


# --- tuples ----------------------------------------------------------------------------------------------------------


def test_rows_that_count_tuples_alone(run, tmp_path):
    metrics = run.folder.path / "metrics.jsonl"
    counted = [json.loads(text) for text in metrics.read_text().splitlines()][:2]
    expected = {"epoch": [1, 2], **{key: [row[key] for row in counted] for key in ("tuples", "negatives")}}
    assert report_tuples(metrics, tmp_path) == expected
    assert names_in(tmp_path) == {"tuples.png", "tuples.svg"}


def test_a_run_that_counts_no_tuples(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    for metrics in (tmp_path / "metrics.jsonl", tmp_path / "nowhere.jsonl"):
        with pytest.raises(LeftOut, match=rf"^no epoch in {metrics} counts tuples: "):
            report_tuples(metrics, tmp_path)
    assert not list(tmp_path.glob("tuples.*"))


# --- confusion -------------------------------------------------------------------------------------------------------


def test_the_confusion_of_the_final_student(run, changed, summary, tmp_path):
    run.load_student(None)
    made = report_confusion(run, tmp_path)
    assert names_in(tmp_path) == {"confusion.png", "confusion.svg"}
    assert made["top1"] == pytest.approx(summary["final"]["top1"])
    assert (made["on"], made["samples"], made["classes"]) == ("test", 24, ["0", "1", "2", "3"])
    assert [sum(row) for row in made["counts"]] == [6, 6, 6, 6]
    wrong = 24 - sum(made["counts"][k][k] for k in range(4))
    assert sum(pair["samples"] for pair in made["most_confused"]) == wrong
    for names, shown in (("ab", "ab23"), ("abcdef", "abcd")):  # filled up, or cut to the student's classes
        assert report_confusion(changed(class_names=list(names)), tmp_path)["classes"] == list(shown)


def test_many_classes_are_drawn_without_names(tmp_path):
    for count in (3, 20, 41):
        draw_confusion(np.eye(count), [f"class {k}" for k in range(count)], "test", tmp_path)
        drawn = (tmp_path / "confusion.svg").read_text("utf-8")
        assert ("<!-- class 2 -->" in drawn) == (count <= 40)
        assert ("<!-- 1.00 -->" in drawn) == (count <= 12)


def test_most_confused():
    """A class without a sample confuses nothing."""
    counts = np.array([[8, 2, 0, 0], [1, 1, 0, 0], [3, 0, 97, 0], [0, 0, 0, 0]])
    pairs = most_confused(counts, list("abcd"))
    assert [(p["true"], p["predicted"], p["samples"], p["share"]) for p in pairs] == [
        ("b", "a", 1, 0.5),
        ("a", "b", 2, 0.2),
        ("c", "a", 3, 0.03),
    ]
    assert len(most_confused(1 - np.eye(6, dtype=int), list("abcdef"))) == 20


# --- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_the_embedding_over_time(run, summary, tmp_path, projection):
    made = report_embedding(run, tmp_path, projection)
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


def test_without_weights_after_the_stage_that_panel_is_missing(run, changed, tmp_path):
    folder = RunFolder(tmp_path)
    folder.student.write_bytes(run.folder.student.read_bytes())
    for values in ({"folder": folder}, {"embedding_stage": None}):
        made = report_embedding(changed(**values), tmp_path)
        assert list(made["panels"]) == ["before_training", "final", "teacher"]


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


def test_tsne_repeats_itself_and_too_little_makes_no_picture():
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    (first, explained), (second, _) = project(rows, "tsne", 1), project(rows, "tsne", 1)
    assert first.shape == (12, 2)
    assert explained is None
    assert np.array_equal(first, second)
    for few, narrow in ((2, 5), (9, 1)):
        with pytest.raises(LeftOut, match=f"^{few} samples in {narrow} dimensions make no picture$"):
            project(torch.ones(few, narrow), "pca", 0)
