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
from gkd_plugin.cache.bank import Banks, open_bank, read_bank, write_banks
from gkd_plugin.cache.fingerprint import bank_keys, data_key, digest, model_key, views_key
from gkd_plugin.data import FixedStream, FixedViews, Stream, seeded, sketch, unwrapped
from gkd_plugin.data.files import write_atomically
from gkd_plugin.data.views import fixed_views
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
    _banks: dict[str, Banks] = field(default_factory=dict)

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
            fixed, dataset = f"{loader['dataset_id']} (fixed views)", unwrapped(datasets[loader["dataset_id"]])
            if isinstance(dataset, Stream) and not dataset.files:
                reason = "answers of a stream are kept for shards on a disk alone (name: 'wds/', and a folder as root)"
                raise ConfigError(f"teacher_cache: datasets.{loader['dataset_id']}: {reason}")
            datasets[fixed] = fixed_views(dataset, self.views, self.seed)
            changed = {**stage, "train_data_loader": {**loader, "dataset_id": fixed, "requires_supp": False}}
            train = changed if where == "train" else {**train, where.removeprefix("train."): changed}
        return {**config, "train": train, "datasets": datasets}

    def open(self, box: Any, accelerator: Accelerator) -> Banks:
        """The banks of the box's present stage, computed where there are none, and known to its teacher."""
        teacher: RefilledTeacher = box.teacher_model
        views: FixedViews | FixedStream = box.train_data_loader.dataset
        if isinstance(teacher.kept, _Kept) and teacher.kept.views is views:
            return teacher.kept.bank
        with torch.random.fork_rng(devices=[]):
            model, more = model_key(teacher.teacher), (teacher.settings(), accelerator.mixed_precision)
            views_are = views_key(views)
            names = [digest(model, key, views_are, *more) for key in bank_keys(views)]
            name = digest(names) if len(names) > 1 else names[0]
            if name not in self._banks:
                paths = [self.folder / f"{name}.npy" for name in names]
                self._banks[name] = self._find(paths, teacher, box.train_data_loader, accelerator)
        bank = self._banks[name]
        teacher.kept = _Kept(self, name, views, bank, accelerator)
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
            key = data_key(images), *(views_key(fixed_views(x, 1), probes=4) for x in (images, view) if x is not None)
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

    def _find(self, paths: list[Path], teacher: RefilledTeacher, loader: Any, accelerator: Accelerator) -> Banks:
        start = time.perf_counter()
        views: FixedViews | FixedStream = loader.dataset
        ask, banks, rank = partial(_fields, teacher, accelerator), Banks(paths), accelerator.process_index
        own: list[Any] = [*range(rank, len(paths), accelerator.num_processes)]  # whose checksums this process reads
        try:
            own = [number for number in own if open_bank(paths[number]) is None]
        except ConfigError as error:
            own = [error]
        for one in (lacking := gather_object(own)):
            if isinstance(one, ConfigError):  # in all processes
                raise one
        lacking.sort()
        if lacking:
            data = views.all_rows(lacking)
            said = asked(ask, in_order(data, loader), accelerator, "teacher cache")
            if accelerator.is_main_process:
                lanes = accelerator.num_processes * max(loader.num_workers, 1)
                write_banks({number: paths[number] for number in lacking}, len(data), said, lanes)
            deque(said, maxlen=0)  # a process that writes nothing takes part in asking
        accelerator.wait_for_everyone()
        missing = next((number for number, path in enumerate(paths) if not path.exists()), None)
        if missing is not None and isinstance(views, FixedStream):
            why = "it holds no image that can be read, or the processes do not share the folder"
            raise ConfigError(f"teacher_cache: {self.folder} lacks the answers to {views.files[missing]}: {why}")
        if missing is not None:
            raise ConfigError(f"teacher_cache.folder: {self.folder} is not where the main process wrote; share one")
        if kept := sorted({*range(len(paths))} - {*lacking}):
            self._compare(ask, views.few_rows(kept), banks, accelerator)
        (rows, size), seconds, how = banks.size(), time.perf_counter() - start, "computed" if lacking else "found"
        place = str(paths[0] if len(paths) == 1 else self.folder)
        report = {"file": place, "files": len(paths), "rows": rows, "bytes": size, "computed": bool(lacking)}
        self.reports.append({**report, "seconds": seconds})
        logger.info("teacher cache: %d views, %.1f MiB, %s in %.1f s: %s", rows, size / 2**20, how, seconds, place)
        return banks

    def _compare(self, ask: Any, few: list[tuple[Tensor, int]], banks: Banks, accelerator: Accelerator) -> None:
        """A few rows, spread evenly, with what the teacher says now."""
        said = ask(torch.stack([image for image, _ in few]).to(accelerator.device))
        for name, kept in read_bank(banks, torch.tensor([row for _, row in few])).items():
            now = said[name].cpu()
            error = (now - kept).norm() / now.norm().clamp_min(1e-6)
            if not error < CLOSE:
                differs = f"asked again, the teacher's {name} differs by {100 * error:.1f} % from that in {self.folder}"
                advice = "teacher, precision or transform have changed; delete the kept answers"
                raise ConfigError(f"teacher_cache.folder: {differs}: {advice}")


@dataclass
class _Kept:
    """What a teacher is given of its cache, see the protocol in teacher/wrapper.py."""

    cache: TeacherCache
    name: str  # of the bank
    views: FixedViews | FixedStream
    bank: Banks
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
