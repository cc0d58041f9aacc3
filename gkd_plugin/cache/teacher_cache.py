"""``teacher_cache``: a teacher answers for K fixed views of each training sample once; the epochs read the answers."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset

from gkd_plugin import __version__
from gkd_plugin.cache.bank import Records, open_bank, read_bank, write_bank
from gkd_plugin.cache.fingerprint import data_key, digest, model_key, views_key
from gkd_plugin.data import FixedViews, Stream, seeded, sketch, unwrapped
from gkd_plugin.data.files import write_atomically
from gkd_plugin.errors import ConfigError, first_line
from gkd_plugin.teacher import Answers, RefilledTeacher
from gkd_plugin.teacher.fitting import asked, in_order

logger = logging.getLogger(__name__)

FOLDER = Path("runs/teacher_cache")
CLOSE = 0.02  # relative; float16 and other processors stay below it


@dataclass
class TeacherCache:
    """The banks of a run, each named after what it was computed from; ``reports`` are for the run's summary."""

    views: int
    folder: Path = FOLDER
    seed: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    _banks: dict[Path, Records] = field(default_factory=dict)

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | None) -> "TeacherCache | None":
        """The cache that a ``teacher_cache`` section describes; ``None`` without one."""
        if not section:
            return None
        try:
            folder = Path(section["folder"]).expanduser() if section.get("folder") else FOLDER
        except RuntimeError as error:
            raise ConfigError(f"teacher_cache.folder: {error}") from error
        return cls(views=section["views"], folder=folder, seed=section.get("seed", 0))

    def fix_views(self, config: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The configuration, data sets built, with fixed views as training sets of ``stages`` (key path → section)."""
        train, datasets = dict(config["train"]), dict(config["datasets"])
        for where, stage in stages.items():
            loader, wrapper = stage["train_data_loader"], (stage.get("teacher") or {}).get("auxiliary_model_wrapper")
            if (wrapper or {}).get("key") != "refilled_teacher":
                key = f"{where}.teacher.auxiliary_model_wrapper.key"
                raise ConfigError(f"teacher_cache: only 'refilled_teacher' can answer from a cache; set it at {key}")
            for key in ("collate_fn", "dataset_wrapper"):
                if loader.get(key) is not None:
                    reason = "may change images that the teacher has answered for; remove it, or the cache"
                    raise ConfigError(f"teacher_cache: {where}.train_data_loader.{key} {reason}")
            if isinstance(datasets[loader["dataset_id"]], Stream):
                reason = f"datasets.{loader['dataset_id']} is a stream: no sample has an index to keep its answers by"
                raise ConfigError(f"teacher_cache: {reason}; remove it")
            fixed = f"{loader['dataset_id']} (fixed views)"
            datasets[fixed] = FixedViews(unwrapped(datasets[loader["dataset_id"]]), self.views, self.seed)
            changed = {**stage, "train_data_loader": {**loader, "dataset_id": fixed, "requires_supp": False}}
            train = changed if where == "train" else {**train, where.removeprefix("train."): changed}
        return {**config, "train": train, "datasets": datasets}

    def open(self, box: Any, accelerator: Accelerator) -> Records:
        """The bank of the box's present stage, computed where there is none, and known to its teacher."""
        teacher: RefilledTeacher = box.teacher_model
        views: FixedViews = box.train_data_loader.dataset
        with torch.random.fork_rng(devices=[]):
            made_from = (model_key(teacher.teacher), data_key(views.dataset), views_key(views))
            path = self.folder / f"{digest(*made_from, teacher.settings(), accelerator.mixed_precision)}.npy"
            if path not in self._banks:
                self._banks[path] = self._find(path, teacher, box.train_data_loader, accelerator)
        bank = self._banks[path]
        teacher.kept = _Kept(self, path.stem, bank, accelerator)
        return bank

    def once(
        self,
        name: str,
        compute: Callable[[], Any],
        *parts: object,
        images: Dataset[Any],
        accelerator: Accelerator,
        view: Dataset[Any] | None = None,
    ) -> Any:
        """What ``compute`` gives: tensors and plain values, that follow from these images and ``parts`` alone.

        And from another ``view`` of images that ``parts`` tell. It is kept beside the banks, and a later run reads it.
        """
        try:
            key = data_key(images), *(views_key(FixedViews(x, 1), probes=4) for x in (images, view) if x is not None)
        except ConfigError:  # samples of another kind, or without labels ahead: they are not known again
            return compute()
        path = self.folder / f"{digest(__version__, name, *key, accelerator.mixed_precision, *parts)}.pt"
        if all(gather_object([path.exists()])):  # another run may write it between two processes' looks
            logger.info("%s: taken from an earlier run, %s", name, path)
            return _read(path)
        with seeded(path.stem):  # whatever the seed of the run that finds it first
            found = compute()
        if accelerator.is_main_process:
            write_atomically(path, lambda file: torch.save(found, file))
        return found

    def attach(self, box: Any, accelerator: Accelerator) -> None:
        """Lets the teacher of the box's present stage answer from its bank; training then compares every image."""
        bank = self.open(box, accelerator)
        forward = box.teacher_forward_proc

        def answer(teacher: RefilledTeacher, images: Tensor, targets: Any, supplement: Any, **more: Any) -> Any:
            found = read_bank(bank, supplement["bank_row"])
            if not torch.allclose(supplement["sketch"].cpu(), found["sketch"], rtol=5e-3, atol=5e-3):
                advice = f"data or transform have changed; delete the kept answers in {self.folder}"
                raise ConfigError(f"teacher_cache: the images are not those that the teacher answered for: {advice}")
            teacher.answer_with(_answers(found))
            return forward(teacher, images, targets, supplement, **more)

        box.teacher_forward_proc = answer

    def _find(self, path: Path, teacher: RefilledTeacher, loader: Any, accelerator: Accelerator) -> Records:
        start = time.perf_counter()
        bank, data = open_bank(path), _AllViews(loader.dataset)
        if not all(gather_object([bank is not None])):  # another run may write it between two processes' looks
            bank = None
        ask = partial(_fields, teacher, accelerator)
        was_there = bank is not None
        if bank is not None:  # a few rows, spread evenly, are compared with what the teacher says now
            rows = torch.linspace(0, len(data) - 1, min(8, len(data))).long()
            said = ask(torch.stack([data[int(row)][0] for row in rows]).to(accelerator.device))
            for name, kept in read_bank(bank, rows).items():
                now = said[name].cpu()
                error = (now - kept).norm() / now.norm().clamp_min(1e-6)
                if not error < CLOSE:
                    differs = f"asked again, the teacher's {name} differs by {100 * error:.1f} % from that in {path}"
                    advice = "teacher, precision or transform have changed; delete the file"
                    raise ConfigError(f"teacher_cache.folder: {differs}: {advice}")
        else:
            answers = (fields for fields, _ in asked(ask, in_order(data, loader), accelerator, "teacher cache"))
            if accelerator.is_main_process:
                write_bank(path, len(data), answers)
            deque(answers, maxlen=0)  # a process that writes nothing takes part in asking
        accelerator.wait_for_everyone()
        bank = open_bank(path) if bank is None else bank
        if bank is None:
            raise ConfigError(f"teacher_cache.folder: {self.folder} is another folder for the main process; share one")
        seconds, size, how = time.perf_counter() - start, bank.nbytes, "found" if was_there else "computed"
        report = {"file": str(path), "rows": len(bank), "bytes": size, "computed": not was_there, "seconds": seconds}
        self.reports.append(report)
        logger.info("teacher cache: %d views, %.1f MiB, %s in %.1f s: %s", len(bank), size / 2**20, how, seconds, path)
        return bank


class _AllViews(Dataset[Any]):
    """The images of every view of every sample, in the order of the bank's rows."""

    def __init__(self, views: FixedViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views) * self.views.views

    def __getitem__(self, row: int) -> tuple[Tensor, Any]:
        return self.views.view(*divmod(row, self.views.views))


@dataclass
class _Kept:
    """What a teacher is given of its cache, see the protocol in teacher/wrapper.py."""

    cache: TeacherCache
    name: str  # of the bank
    bank: Records
    accelerator: Accelerator

    def answers(self, rows: Tensor) -> Answers:
        return _answers(read_bank(self.bank, rows))

    def once(self, name: str, compute: Callable[[], Any], *parts: object, images: Any, view: Any = None) -> Any:
        more = {"images": images, "view": view, "accelerator": self.accelerator}
        return self.cache.once(name, compute, self.name, *parts, **more)


def _answers(fields: Mapping[str, Tensor]) -> Answers:
    return Answers(**{name: value for name, value in fields.items() if name != "sketch"})


def _fields(teacher: RefilledTeacher, accelerator: Accelerator, images: Tensor) -> dict[str, Tensor]:
    """What a bank keeps of a batch: no local logits, which follow from the embedding and the centres of the run."""
    with accelerator.autocast():
        return {**teacher.fields(images), "sketch": torch.stack([sketch(image) for image in images.cpu()])}


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, torch raises anything
        raise ConfigError(f"teacher_cache.folder: {path} cannot be used: {first_line(error)}; delete it") from error
