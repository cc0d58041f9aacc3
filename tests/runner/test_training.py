"""The epoch loop."""

import copy
import io
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.utils.data import SequentialSampler

from gkd_plugin.config.stages import stages_of
from gkd_plugin.data import unwrapped
from gkd_plugin.models import timm_model
from gkd_plugin.runner import training
from gkd_plugin.runner.checkpoints import Progress
from gkd_plugin.runner.training import Training
from gkd_plugin.teacher import RefilledTeacher
from tests.fakes import TinyImages, cross_entropy, loader, make_box, models, stage
from tests.runner.fakes import cpu, refused


def epochs_of(sections, accelerator=None, **options):
    """The generator of rows, and the box."""
    accelerator = accelerator or cpu()
    teacher, student = models()
    sections = copy.deepcopy(sections if "stage1" in sections else {"stage1": sections})
    box = make_box(sections, teacher, student, accelerator)
    return Training(box, student, stages_of({"train": sections}), accelerator, **options).epochs(), box


def train(sections, **options):
    return [row for _, row in epochs_of(sections, **options)[0]]


def test_a_row_holds_the_means_over_the_batches():
    """24 images in batches of 10: the last batch of 4 counts as much as the others."""
    epochs, box = epochs_of(stage("classifier", train_data_loader=loader("train", batch_size=10)))
    terms, forward = [], box.criterion.forward

    def noted(*args, **kwargs):
        loss = forward(*args, **kwargs)
        terms.append({"loss": loss.item(), **{name: float(value) for name, value in box.criterion.terms.items()}})
        return loss

    box.criterion.forward = noted
    ((_, row),) = epochs
    assert len(terms) == 3
    for name in ("loss", "cross_entropy", "local_classifier"):
        assert row[name] == pytest.approx(sum(values[name] for values in terms) / 3)
    assert row["images_per_second"] == pytest.approx(24 / row["seconds"])
    assert 0 < row["waiting"] < 1


def test_the_bars_show_figures_and_the_time_left_and_are_closed(monkeypatch):
    stream, bars, plain = io.StringIO(), [], training.tqdm

    def bar(*args, **kwargs):
        settings = {**kwargs, "disable": False, "ncols": 80, "dynamic_ncols": False, "miniters": 0}
        bars.append(plain(*args, **settings, file=stream, mininterval=0))
        return bars[-1]

    monkeypatch.setattr(training, "tqdm", bar)
    train({"stage1": stage("embedding", epochs=2), "stage2": stage("classifier")})
    for part in ("stage1 1/2", "loss ", " img/s, ", "% waiting", "all epochs:  50%|"):
        assert part in stream.getvalue()
    long = {"prefix": "stage1 100/200", "postfix": "loss 1.234e+04, 12345 img/s, 100 % waiting", "ncols": 80}
    shown = plain.format_meter(1999, 20000, 5025, bar_format=training._EPOCH_BAR, **long)
    assert (len(shown), shown[-11:]) == (80, "0 % waiting")
    assert len(bars) == 4
    assert [bar.total for bar in bars] == [3, 2, 2, 2]
    assert bars[0].n == pytest.approx(3)
    assert all(bar.disable for bar in bars)


def test_every_few_steps_there_is_a_line_with_the_means_since_the_last_one(caplog):
    caplog.set_level("INFO", "gkd_plugin.runner.training")
    tracked = []
    section = stage("classifier", epochs=2, train_data_loader=loader("train", batch_size=5))
    epochs, box = epochs_of(section, log_freq=2, track=lambda figures, step: tracked.append((step, figures)))
    losses, forward = [], box.criterion.forward
    box.criterion.forward = lambda *args, **kwargs: (loss := forward(*args, **kwargs), losses.append(loss.item()))[0]
    rows = [row for _, row in epochs]
    lines = [record.getMessage() for record in caplog.records if getattr(record, "is_on_bar", False)]
    assert [line.partition(":")[0] for line in lines] == [f"stage1 {n}/2, step {k}/5" for n in (1, 2) for k in (2, 4)]
    assert all(part in lines[0] for part in ("lr 0.05", "img/s", "% waiting", " left"))
    assert [step for step, _ in tracked] == [2, 4, 5, 7, 9, 10]
    in_steps = [figures["train/loss"] for _, figures in tracked if "train/loss" in figures]
    assert in_steps == pytest.approx([sum(losses[k : k + 2]) / 2 for k in (0, 2, 5, 7)])
    in_epochs = [figures for _, figures in tracked if "epoch" in figures]
    assert [(found["epoch"], found["epoch/loss"], found["val/top1"]) for found in in_epochs] == [
        (row["epoch"], row["loss"], row["top1"]) for row in rows
    ]


def test_whoever_gets_the_rows_may_end_the_training():
    sections = {"stage1": stage("classifier", epochs=5)}
    box = make_box(copy.deepcopy(sections), *models(), cpu())
    training = Training(box, box.org_student_model, stages_of({"train": sections}), cpu())
    for _, row in training.epochs():
        training.is_enough = row["epoch"] == 2
    assert row["epoch"] == 2


def test_validation_is_after_every_few_epochs_and_the_last_three_and_leaves_training_as_it_is():
    schedule = {"key": "StepLR", "kwargs": {"step_size": 1, "gamma": 0.1}}
    sections = {"stage1": stage("embedding", epochs=2, scheduler=schedule), "stage2": stage("classifier", epochs=5)}
    rows = train(sections, val_freq=2)
    plain = train({name: {**section, "val_data_loader": {}} for name, section in sections.items()})
    assert [row["stage"] for row in rows] == ["stage1"] * 2 + ["stage2"] * 5
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.005] + [0.05] * 5)
    assert ["ncm_top1" in row for row in rows] == [False, True] + [False] * 5
    assert [row["epoch"] for row in rows[2:] if "top1" in row] == [2, 3, 4, 5]
    assert not any("top1" in row or "ncm_top1" in row for row in plain)
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]


def test_every_stage_has_its_precision_and_its_bound_of_gradients(monkeypatch):
    """Accelerate's wrappers for mixed precision would otherwise pile up from stage to stage."""
    bounds, dtypes = [], set()
    monkeypatch.setattr(training, "clip_unscaled", lambda box, _: bounds.append(box.max_grad_norm))
    sections = {f"stage{n}": stage("classifier", val_data_loader={}) for n in (1, 2, 3)}
    sections["stage2"]["optimizer"]["max_grad_norm"] = 0.5
    epochs, box = epochs_of(sections, cpu("bf16"))
    box.teacher_model.teacher.layer1.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    next(epochs)
    assert torch.bfloat16 in dtypes  # the student's precision
    assert len(list(epochs)) == 2
    student = box.org_student_model
    assert "forward" not in student.__dict__ or not hasattr(student.forward, "__wrapped__")
    assert "_original_forward" not in student.__dict__
    assert bounds == [None, 0.5, None]


def batches(size):
    return {"train_data_loader": loader("train", SequentialSampler, batch_size=size)}


@pytest.mark.parametrize(("margin", "warnings"), [(1e-9, 1), (0.2, 0)])
def test_a_stage_that_ends_without_a_tuple_is_told(margin, warnings, caplog):
    """Batches of 5 of the sorted images with 6 of each class: all but the first hold two classes, which is enough."""
    section = stage("embedding", epochs=2, **batches(5))
    section["criterion"]["kwargs"]["margin"] = margin
    train(section)
    assert caplog.text.count("stage1: its last epoch had no tuple") == warnings


def attention_transfer(path):
    """A loss whose hooks are not checked before training."""
    pair = {"io": "output", "path": path}
    pairs = {"a": {"teacher": pair, "student": pair, "factor": 1}}
    term = {"criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}}, "weight": 1.0}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"at": term}}}


NO_RATE = stage("classifier", optimizer={"key": "SGD", "kwargs": {"lr": -1}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (stage("embedding", **batches(6)), "stage1 1/1: no batch held two samples of one class and one of another"),
        (
            stage("embedding", **batches(1)),
            r"stage1 1/1, step 1: .*\(the batch has one image; kwargs\.drop_last: True.*Value",
        ),
        (stage("classifier", criterion=attention_transfer("layer9")), "stage1 1/1, step 1: .* under 'layer9'"),
        (
            {"stage1": stage("embedding"), "stage2": NO_RATE},
            "train.optimizer: torchdistill cannot build this stage: Inv",
        ),
    ],
)
def test_what_stops_an_epoch_is_told_with_its_place(section, message):
    refused(f"^{message}", train, section)


def test_a_plateau_is_one_of_the_validation_accuracy(monkeypatch):
    figures = iter((50.0, 40.0, 30.0, 60.0))
    monkeypatch.setattr(training.Training, "_validate", lambda *_: {"top1": next(figures)})
    plan = {"key": "ReduceLROnPlateau", "kwargs": {"mode": "max", "patience": 0, "factor": 0.1}}
    rates = [row["lr"] for row in train(stage("classifier", epochs=4, scheduler=plan))]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_a_last_batch_of_one_image_is_left_out_where_batch_norm_cannot_use_it(caplog):
    caplog.set_level("INFO")
    epochs, _ = epochs_of(stage("embedding", num_epochs=2, **batches(23)))
    assert [row["images_per_second"] == pytest.approx(23 / row["seconds"]) for _, row in epochs] == [True, True]
    assert caplog.text.count("the last batch has one image") == 1


def test_a_batch_without_a_label_is_told_where_it_leaves_no_loss():
    terms = {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": cross_entropy()}}}
    epochs, box = epochs_of(stage("embedding", criterion=terms))
    unwrapped(box.train_data_loader.dataset).targets = [-1] * 24
    refused(r"^the loss is nan at stage1 1/1, step 1 \(the batch has no image with a label: Mixed", list, epochs)


def saved_teacher(path):
    """Another teacher as torchdistill saves it: the wrapper, with its own centres."""
    teacher, images = RefilledTeacher(timm_model("test_resnet", num_classes=7)), TinyImages()
    teacher.fit_centres([(images.images, torch.tensor(images.targets))])
    torch.save({"model": teacher.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize(("data", "has_weights", "fits"), [("train", False, 1), ("val", False, 2), ("train", True, 2)])
def test_centres_are_kept_for_the_same_data_and_weights_alone(data, has_weights, fits, monkeypatch, tmp_path):
    """Each stage has a wrapper of its own."""
    fitted, fit, centres = [], RefilledTeacher.fit_centres, []
    monkeypatch.setattr(RefilledTeacher, "fit_centres", lambda self, *args: (fitted.append(self), fit(self, *args))[1])
    second = stage("classifier", train_data_loader=loader(data))
    if has_weights:
        second["teacher"]["src_ckpt"] = saved_teacher(tmp_path / "teacher.pt")
    epochs, box = epochs_of({"stage1": stage("classifier"), "stage2": second})
    for _ in epochs:
        centres.append(box.teacher_model.local_classifier.centres.clone())
    assert len(fitted) == fits
    assert torch.equal(*centres) == (fits == 1)


@pytest.mark.parametrize(("processes", "saved"), [(1, 1), (2, 0)])
def test_several_processes_do_not_stop_at_one_step_and_save_nothing_there(processes, saved):
    checkpoints = Mock()
    accelerator = SimpleNamespace(num_processes=processes, device=torch.device("cpu"))
    training = Training(None, None, [], accelerator, checkpoints=checkpoints)
    training._save(Progress(step=1), is_stopped=True)
    assert checkpoints.save.call_count == saved
