"""``teacher_cache``: a teacher answers for K fixed views of each training sample once; the epochs read the answers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gkd_plugin.cache import BankWriter, FeatureBank
from gkd_plugin.cache.fingerprint import Fingerprint, data_key, teacher_key, views_key
from gkd_plugin.data import FixedViews
from gkd_plugin.data._checks import unwrapped
from gkd_plugin.data.fixed_views import sketch
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.building import section_name, stage_configs
from gkd_plugin.teacher import Answers, RefilledTeacher

__all__ = ["TeacherCache"]

logger = logging.getLogger(__name__)

FOLDER = Path("runs/teacher_cache")
CLOSE = 0.02  # relative; float16 and other processors stay below it


@dataclass
class TeacherCache:
    """The banks of a run.

    Attributes:
        views: K.
        folder: where the banks are kept; each is named after what it was computed from.
        seed: of the views; runs of different seeds share a bank.
        reports: one line of figures for each bank, for the summary.
    """

    views: int
    folder: Path = FOLDER
    seed: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    _banks: dict[str, FeatureBank] = field(default_factory=dict)

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | None) -> TeacherCache | None:
        """The cache that a ``teacher_cache`` section describes; ``None`` without one."""
        if not section:
            return None
        try:
            folder = Path(section["folder"]).expanduser() if section.get("folder") else FOLDER
        except RuntimeError as error:
            raise ConfigError(f"teacher_cache.folder: {error}") from error
        return cls(views=section["views"], folder=folder, seed=section.get("seed", 0))

    def fix_views(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with fixed views in place of every stage's training set.

        Raises:
            ConfigError: the folder cannot be written to, a stage's teacher is not wrapped in ``refilled_teacher``, or
                its loader may change images after the data set made them.
        """
        _check_folder(self.folder)
        train = dict(config["train"])
        datasets = dict(config["datasets"])
        for name, stage in stage_configs(train).items():
            where = section_name(name)
            self._check_stage(where, stage)
            loader = stage["train_data_loader"]
            fixed = f"{loader['dataset_id']} (fixed views)"
            if fixed not in datasets:
                datasets[fixed] = FixedViews(unwrapped(datasets[loader["dataset_id"]]), self.views, self.seed)
            stage["train_data_loader"] = {**loader, "dataset_id": fixed, "requires_supp": False}
            train = stage if name == "train" else {**train, name: stage}
        return {**config, "train": train, "datasets": datasets}

    def _check_stage(self, where: str, stage: Mapping[str, Any]) -> None:
        wrapper = (stage.get("teacher") or {}).get("auxiliary_model_wrapper") or {}
        if wrapper.get("key") != "refilled_teacher":
            raise ConfigError(
                f"teacher_cache: only the wrapper 'refilled_teacher' can answer from a cache; set "
                f"{where}.teacher.auxiliary_model_wrapper.key to it"
            )
        for key in ("collate_fn", "dataset_wrapper"):
            if stage["train_data_loader"].get(key) is not None:
                raise ConfigError(
                    f"teacher_cache: {where}.train_data_loader.{key} may change images that the teacher has answered "
                    "for; remove it, or the cache"
                )

    def open(self, box: Any, accelerator: Accelerator) -> None:
        """Finds or computes the bank of the box's present stage, before anything of the run is written.

        Raises:
            ConfigError: a bank is damaged or cannot be written.
        """
        with torch.random.fork_rng(devices=[]):  # the run is the same whether the bank was there or not
            self._bank(box, accelerator)

    def attach(self, box: Any, accelerator: Accelerator) -> None:
        """Lets the teacher of the box's present stage answer from a bank, which is computed where there is none.

        Raises:
            ConfigError: a bank is damaged or cannot be written.
        """
        with torch.random.fork_rng(devices=[]):
            bank = self._bank(box, accelerator)
        forward = box.teacher_forward_proc

        def answer(teacher: RefilledTeacher, images: Tensor, targets: Any, supplement: Any, **more: Any) -> Any:
            found = bank.read(supplement["bank_row"])
            self._check_images(supplement["sketch"].cpu(), found["sketch"])
            teacher.answer_with(Answers(found["embedding"], None, found.get("logits"), found.get("features")))
            return forward(teacher, images, targets, supplement, **more)

        box.teacher_forward_proc = answer

    def _check_images(self, seen: Tensor, kept: Tensor) -> None:
        """Whether the student's images are those that the teacher answered for."""
        if not torch.allclose(seen, kept, rtol=5e-3, atol=5e-3):
            raise ConfigError(
                "teacher_cache: the images are not those that the teacher answered for: data or transform changed "
                f"in a way that the bank's name does not show; delete the bank in {self.folder}"
            )

    def _bank(self, box: Any, accelerator: Accelerator) -> FeatureBank:
        teacher: RefilledTeacher = box.teacher_model
        views: FixedViews = box.train_data_loader.dataset
        fingerprint = _fingerprint(teacher, views, accelerator)
        if fingerprint.digest not in self._banks:
            self._banks[fingerprint.digest] = self._opened(teacher, box.train_data_loader, fingerprint, accelerator)
        return self._banks[fingerprint.digest]

    def _opened(
        self, teacher: RefilledTeacher, loader: Any, fingerprint: Fingerprint, accelerator: Accelerator
    ) -> FeatureBank:
        start = time.perf_counter()
        accelerator.wait_for_everyone()  # no process looks while another one puts the bank in place
        bank = FeatureBank.open(self.folder, fingerprint)
        was_there = bank is not None
        if bank is None and accelerator.is_main_process:
            _compute(teacher, loader, self.folder, fingerprint, accelerator)
        accelerator.wait_for_everyone()
        bank = bank or FeatureBank.open(self.folder, fingerprint)
        if bank is None or bank.rows != len(loader.dataset) * self.views:
            raise ConfigError(f"teacher_cache.folder: {self.folder} does not hold the bank that was written there")
        if was_there:
            _check_teacher(teacher, loader.dataset, bank, accelerator)
        report = {
            "file": str(self.folder / f"{fingerprint.digest}.npy"),
            "rows": bank.rows,
            "bytes": bank.nbytes,
            "computed": not was_there,
            "seconds": time.perf_counter() - start,
        }
        self.reports.append(report)
        logger.info(
            "teacher cache: %d views, %.1f MiB, %s in %.1f s: %s",
            bank.rows,
            bank.nbytes / 2**20,
            "found" if was_there else "computed",
            report["seconds"],
            report["file"],
        )
        return bank


def _check_folder(folder: Path) -> None:
    """Whether there can be such a folder; whether the disk has room shows when the size of the bank is known."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"teacher_cache.folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"teacher_cache.folder: {there} cannot be written to")


class _AllViews(Dataset[Any]):
    """Every view of every sample, in the order of the bank's rows: images alone."""

    def __init__(self, views: FixedViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views) * self.views.views

    def __getitem__(self, row: int) -> Any:
        return self.views.view(*divmod(row, self.views.views))[0]


def _fingerprint(teacher: RefilledTeacher, views: FixedViews, accelerator: Accelerator) -> Fingerprint:
    return Fingerprint(
        teacher=teacher_key(teacher.teacher),
        data=data_key(views.dataset),
        views=views_key(views),
        preprocessing=f"{teacher.settings()} {accelerator.mixed_precision}",
    )


@torch.no_grad()
def _compute(
    teacher: RefilledTeacher, loader: Any, folder: Path, fingerprint: Fingerprint, accelerator: Accelerator
) -> None:
    data = _AllViews(loader.dataset)
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 128
    batches = DataLoader(data, batch_size=batch_size, num_workers=loader.num_workers)
    first = _columns(teacher, next(iter(batches))[:1], accelerator)
    widths = {name: value.shape[1] for name, value in first.items()}
    with BankWriter(folder, fingerprint, len(data), widths) as writer:
        for images in tqdm(batches, desc="teacher cache", leave=False, disable=None):
            writer.write(_columns(teacher, images, accelerator))


def _columns(teacher: RefilledTeacher, images: Tensor, accelerator: Accelerator) -> dict[str, Tensor]:
    """A bank's columns: local logits are left to be computed from the embedding, with the centres of the run."""
    with accelerator.autocast():
        answers = teacher.answers(images.to(accelerator.device))
    columns = {"embedding": answers.embedding, "sketch": torch.stack([sketch(image) for image in images.cpu()])}
    if teacher.has_classifier and answers.logits is not None:
        columns["logits"] = answers.logits
    if answers.features is not None:
        columns["features"] = answers.features
    return columns


@torch.no_grad()
def _check_teacher(teacher: RefilledTeacher, views: FixedViews, bank: FeatureBank, accelerator: Accelerator) -> None:
    """Asks the teacher for a few rows of a bank that was there, spread evenly.

    Raises:
        ConfigError: it answers otherwise than the bank.
    """
    rows = torch.linspace(0, bank.rows - 1, min(8, bank.rows)).long()
    images = torch.stack([views.view(*divmod(int(row), views.views))[0] for row in rows])
    with accelerator.autocast():
        answers = teacher.answers(images.to(accelerator.device))
    kept = bank.read(rows)
    for name in ("embedding", "logits", "features"):
        value = getattr(answers, name)
        if value is None or name not in kept:
            continue
        error = (value.cpu() - kept[name]).norm() / value.cpu().norm().clamp_min(1e-6)
        if not error < CLOSE:
            raise ConfigError(
                f"teacher_cache.folder: the teacher's {name} of the first rows asked for differ from the bank's by "
                f"{100 * error:.1f} %: another teacher, precision or transform; delete the bank"
            )
