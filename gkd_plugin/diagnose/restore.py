"""A finished run, rebuilt from its folder: the models, the student's weights over time, the data."""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchdistill.common.main_util import set_seed
from tqdm import tqdm

from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.config.config import load_config
from gkd_plugin.config.stages import Stage, has_teacher, stages_of, student_embedding, student_entry
from gkd_plugin.data import class_names_of, classes_of
from gkd_plugin.data.labels import unwrapped
from gkd_plugin.errors import ConfigError, told_at, whole_number
from gkd_plugin.runner.accuracy import Score, classes_without_centre, classes_without_sample
from gkd_plugin.runner.devices import make_accelerator, read_placement
from gkd_plugin.runner.models import TEACHER, build_model
from gkd_plugin.runner.parts import build_box, build_test_loader, num_classes_of
from gkd_plugin.runner.run_folder import FINISHED, RunFolder, read_json
from gkd_plugin.runner.weights import load_weights
from gkd_plugin.teacher import RefilledTeacher, clean_loader, fit_class_centres
from gkd_plugin.teacher.fitting import in_order

WRAPPER = "refilled_teacher"


class LeftOut(Exception):  # noqa: N818  # not an error: the other parts go on
    """A run has nothing for a part of the diagnostics; the message says why, and what would bring it in."""


class Images(NamedTuple):
    """'train', 'validation' or 'test', and (images, labels, …) batches of each sample once, clean where possible."""

    name: str
    loader: DataLoader[Any]


class RestoredRun:
    """A finished run, rebuilt from its folder as the runner built it, with the teacher on the student's device.

    ``teacher`` is ``None`` where the run has none in the wrapper ``refilled_teacher``. A ConfigError says that this is
    no folder of a finished run, or that weights or data are not there any more or others.
    """

    teacher: RefilledTeacher | None

    def __init__(self, path: Path, device: str | None = None) -> None:
        summary = finished_summary(path)
        self.folder, self.seed = RunFolder(path), summary["seed"]
        if not self.folder.student.is_file():
            raise ConfigError(f"{path}: the student's weights are missing: no such file: {self.folder.student}")
        config = load_config(path / "config.yaml")
        with told_at(f"{config.path}: "):
            placement = read_placement(config.tree, device, one_device=True)
            self.accelerator = make_accelerator(placement)
            if self.accelerator.num_processes > 1:
                raise ConfigError("refilled diagnose and refilled report run in one process each")
            set_seed(self.seed)  # from here to the student in the order of a run, which decides its first weights
            built = config.build()
            where, entry = student_entry(built)
            student = build_model(where, entry)
            self.initial = copy.deepcopy(student.state_dict())  # before any training
            teacher = build_model(TEACHER, built["models"]["teacher_model"]) if has_teacher(built) else None
            stage = _last_wrapped(stages_of(built))
            box = build_box({**built, "train": stage.section}, teacher, student, placement, self.accelerator)
            self.accelerator.unwrap_model(box.model if teacher is None else box.student_model, keep_fp32_wrapper=False)
            box.clean_modules()
            dataset, wrapper = box.train_data_loader.dataset, None if teacher is None else box.teacher_model
            self.teacher = wrapper if isinstance(wrapper, RefilledTeacher) else None
            if self.teacher is None:
                self.without_sample = classes_without_sample(dataset, num_classes_of(student, entry))
            elif summary.get("teacher_weights") not in (None, model_key(self.teacher.teacher)):
                raise ConfigError(f"{TEACHER}: has other weights than in the run; was its src_ckpt written again?")
            else:
                self.without_sample = classes_without_centre(self.teacher, dataset)
                if not self.without_sample:
                    fit_class_centres(self.teacher, box.train_data_loader)
            self.train = Images("train", clean_loader(box.train_data_loader))
            test = _held_out("test", build_test_loader(built, self.accelerator))
            validation = _held_out("validation", box.val_data_loader)
        self.validation, self.test = validation or test, test or validation
        self.class_names = class_names_of(dataset) or [str(name) for name in classes_of(dataset)]
        # of each class of the student; None: it does not know it
        self.teacher_labels = self.teacher and self.teacher.class_map.labels
        self.student = student.to(self.accelerator.device)
        self.embedding_stage = next((stage.name for stage in config.stages[::-1] if stage.kind == "embedding"), None)
        embedding = student_embedding(config.tree) or "embedding"
        self.embedding_path = embedding if embedding in dict(student.named_modules()) else None
        self.load_student(self.folder.student)  # damaged weights are told before anything is measured

    def load_student(self, weights: Path | None) -> None:
        """Gives the student the weights in a file, or with ``None`` those before any training."""
        if weights is None:
            self.student.load_state_dict(self.initial)
        else:
            load_weights(self.student, weights, "run folder")
        self.student.eval()

    @cached_property
    def answers(self) -> tuple[Tensor, Tensor]:
        """Logits ``[N, C]`` of the final student for the test images in order, and labels ``[N]``."""
        if self.test is None:
            raise LeftOut("there are no test images (test.test_data_loader) and no validation images")
        self.load_student(self.folder.student)
        return self.outputs(self.student, self.test, "confusion")

    def check_centres(self) -> None:
        """Raises LeftOut where a class has no training sample (incremental learning without a memory)."""
        if self.without_sample:
            classes = ", ".join(map(str, self.without_sample[:10]))
            raise LeftOut(f"not measured: class {classes} has no training sample")

    def batches(self, loader: DataLoader[Any], title: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(images on the device, labels), each batch to be used in the run's precision and without gradients."""
        for batch in tqdm(loader, desc=title, leave=False, disable=None):
            with torch.no_grad(), self.accelerator.autocast():
                yield batch[0].to(self.accelerator.device), batch[1]

    def outputs(self, score: Score, images: Images, title: str) -> tuple[Tensor, Tensor]:
        """``score`` (images → ``[B, D]``) of all images, ``[N, D]`` float32, and labels ``[N]``, both on the CPU."""
        rows = [(score(batch).float().cpu(), labels) for batch, labels in self.batches(images.loader, title)]
        return torch.cat([scores for scores, _ in rows]), torch.cat([labels for _, labels in rows])


def finished_summary(path: Path) -> dict[str, Any]:
    """``summary.json`` of a run folder; raises ConfigError where that is none, or its run has not finished."""
    missing = [name for name in ("config.yaml", "summary.json") if not (path / name).is_file()]
    if missing:
        raise ConfigError(f"{path} is not a run folder: it has no {' and no '.join(missing)}")
    file = path / "summary.json"
    summary = read_json(file)
    if not summary:
        raise ConfigError(f"{file}: is damaged: must be a JSON object with status and seed, as refilled run wrote it")
    if summary.get("status") != FINISHED:
        raise ConfigError(f"{path}: the run is not finished (status: {summary.get('status')})")
    whole_number(f"{file}: seed", summary.get("seed"), low=0, high=2**32 - 1)
    return summary


def _last_wrapped(stages: Sequence[Stage]) -> Stage:
    """The last stage with the teacher's wrapper; of a run without it, the last one."""
    return next((stage for stage in stages[::-1] if stage.teacher and stage.teacher.wrapper == WRAPPER), stages[-1])


def _held_out(name: str, loader: Any) -> Images | None:
    """The images of a loader made by torchdistill, all of them in order."""
    return None if loader is None else Images(name, in_order(unwrapped(loader.dataset), loader))
