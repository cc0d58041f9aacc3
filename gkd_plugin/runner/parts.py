"""The parts of a run: models, data, box and cache, built from a configuration and checked against each other."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.datasets.util import build_data_loader

from gkd_plugin.box.upstream import torchdistill_errors
from gkd_plugin.cache.teacher_cache import TeacherCache
from gkd_plugin.config.stages import Role, Stage, stages_of, student_embedding, student_entry
from gkd_plugin.data import class_names_of, normalisation_of
from gkd_plugin.data.transforms import preprocessing_of
from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.checks import check_data, check_dropped, check_forward, check_hooks, first_images
from gkd_plugin.runner.devices import Placement
from gkd_plugin.runner.division import divide
from gkd_plugin.runner.models import TEACHER, build_model, start_at_centres
from gkd_plugin.runner.rehearsal import copies, rehearse, undisturbed
from gkd_plugin.runner.tracking import check_tracker
from gkd_plugin.runner.weights import OPTIONAL, read_weights, refuse_broken, shown

logger = logging.getLogger(__name__)

_FEW_VIEWS = 5  # times as many epochs as fixed views is told: docs/cache.md and docs/when-it-pays.md say what it cost


class Parts:
    """Everything that the run of a built configuration needs, built, checked and rehearsed; nothing is written.

    But for the teacher's answers that a cache keeps, unless ``is_trial``.
    """

    def __init__(
        self,
        built: Mapping[str, Any],
        placement: Placement,
        accelerator: Accelerator,
        cache: TeacherCache | None,
        is_trial: bool = False,
    ) -> None:
        self.accelerator, self.cache = accelerator, cache
        self.stages = stages = stages_of(built)
        first, last = (built["datasets"][stage.loader["dataset_id"]] for stage in (stages[0], stages[-1]))
        where, entry = self.student_path, self.student_entry = student_entry(built)
        self.student = student = build_model(where, entry)
        self.num_classes = num_classes_of(student, entry)
        check_data(built, where, self.num_classes, stages)
        check_tracker(built.get("tracker"))
        teacher_entry = built["models"].get("teacher_model")
        teacher = None if teacher_entry is None else build_model(TEACHER, teacher_entry)
        check_hooks(stages, teacher, student)
        test = (built.get("test") or {}).get("test_data_loader")
        loaders = filter(None, (*(loader for stage in stages for loader in (stage.loader, stage.val_loader)), test))
        used = dict.fromkeys(loader["dataset_id"] for loader in loaders)
        shown_first = {name: first_images(f"datasets.{name}", built["datasets"][name]) for name in used}
        images = next(iter(shown_first.values()))
        check_forward(where, student.to(accelerator.device).eval(), images, accelerator)
        if entry.get("src_ckpt_classifier") == "centres":
            kwargs = stages[0].loader.get("kwargs") or {}
            loader = DataLoader(first, kwargs.get("batch_size"), num_workers=kwargs.get("num_workers", 0))
            start_at_centres(where, student, loader, accelerator, None if is_trial else cache)
        if placement.channels_last:
            for model in filter(None, (student, teacher)):
                model.to(memory_format=torch.channels_last)
        if teacher is not None:
            divide(teacher, stages, built["datasets"], placement, accelerator)
        if cache is not None:
            built = cache.fix_views(built, {stage.path: stage.section for stage in stages})
        self._rehearse(built, teacher, placement, images)
        self.box = build_box(built, teacher, student, placement, accelerator)
        if teacher is not None:
            self.box.teacher_model.eval()  # torchdistill's processes leave it as it is
        if cache is not None and not is_trial:
            cache.open(self.box, accelerator)
        compile_models(placement.compile, student, teacher)
        _warn(built, stages)
        names = class_names_of(last)
        self.class_names = names if names is not None and len(names) == self.num_classes else None
        size = getattr(student, "own_size", None) or (images.shape[-2], images.shape[-1])
        self.image_input = replace(normalisation_of(last), size=size)
        measured = (test or stages[-1].val_loader or stages[-1].loader)["dataset_id"]
        self.preprocessing = preprocessing_of(built["datasets"][measured], shown_first[measured])
        self.embedding_path = student_embedding(built)
        defaults = {"val_freq": 1, "log_freq": 100, "keep": "last", "patience": None}
        self.settings = {name: built["train"].get(name, default) for name, default in defaults.items()}
        self.test_loader = build_test_loader(built, accelerator)

    def _rehearse(
        self, built: Mapping[str, Any], teacher: nn.Module | None, placement: Placement, images: Tensor
    ) -> None:
        """On copies; before the box is built, because torchdistill's class attributes are those of the last stage."""
        datasets = {name: copy.copy(dataset) for name, dataset in built["datasets"].items()}  # a wrapper may change it
        built = {**built, "datasets": datasets}
        with undisturbed(self.accelerator.device):
            copied, student = copies(teacher, self.student, self.stages)
            box = build_box(built, copied, student, placement, self.accelerator, is_prepared=False)
            if teacher is not None:
                check_forward(TEACHER, box.teacher_model.eval(), images, self.accelerator)
            about = {"where": self.student_path, "num_classes": self.num_classes, "accelerator": self.accelerator}
            rehearse(box, student, self.stages, build_test_loader(built, None), **about)
            box.clean_modules()  # its hooks on a teacher that is not copied


def build_box(
    config: Mapping[str, Any],
    teacher: nn.Module | None,
    student: nn.Module,
    placement: Placement,
    accelerator: Accelerator,
    *,
    is_prepared: bool = True,
) -> Any:
    """torchdistill's training or distillation box for the config, and for Accelerate if ``is_prepared``."""
    train_config = copy.deepcopy(config["train"])  # the box scales learning rates in place
    stages = stages_of({"train": train_config})
    for loader in (loader for stage in stages for loader in (stage.loader, stage.val_loader) if loader):
        pin_memory(loader, accelerator.device)
    if teacher is not None:
        _place_teacher(stages, placement)
    for role in (role for stage in stages for role in (stage.teacher, stage.student) if role is not None):
        if role.section.get("src_ckpt") is not None:
            _check_weights(role, student if teacher is None or role.path.endswith(".student") else teacher)
    prepares = accelerator if is_prepared else None
    common = (config["datasets"], train_config, accelerator.device, None, False, 1, prepares)
    with torchdistill_errors(stages[0].path):
        if teacher is None:
            return get_training_box(student, *common)
        return get_distillation_box(teacher, student, *common)


def _check_weights(role: Role, model: nn.Module) -> None:
    """Reads a stage's ``src_ckpt`` safely, before torchdistill unpickles it, and refuses what it could not load."""
    path, where = role.section["src_ckpt"], f"{role.path}.src_ckpt"
    state = read_weights(path, where, as_torch_does=True).state
    inside = {None: "", "refilled_teacher": "teacher.", "projected_student": "student."}.get(role.wrapper)
    refuse_broken(state, f"{where}: {path}", {f"{inside}{name}" for name, _ in model.named_buffers()})
    if inside is None or role.section.get("sequential"):
        return
    expected = [inside + key for key in model.state_dict() if not key.endswith(OPTIONAL)]
    if missing := [key for key in expected if key not in state]:
        lacks = f"lacks {len(missing)} tensors of {role.wrapper or type(model).__name__}: {shown(missing)}"
        raise ConfigError(
            f"{where}: {path} {lacks}; the model's own weights go into the src_ckpt of its entry in models"
        )


def _place_teacher(stages: Sequence[Stage], placement: Placement) -> None:
    """Hands ``device.teacher`` and ``device.teacher_dtype`` to every stage's teacher wrapper, in place."""
    apart = None if isinstance(placement.teacher_device, str) else placement.teacher_device
    wanted = {"teacher_device": apart, "teacher_dtype": placement.teacher_dtype}
    given = {key: str(value) for key, value in wanted.items() if value is not None}
    for stage in stages if given else ():
        if stage.teacher is None or stage.teacher.wrapper != "refilled_teacher":
            key = "device.teacher" if "teacher_device" in given else "device.teacher_dtype"
            place = f"{stage.path}.teacher.auxiliary_model_wrapper.key"
            raise ConfigError(f"{key}: only the wrapper 'refilled_teacher' can have its own; set {place} to it")
        stage.teacher.section["auxiliary_model_wrapper"]["kwargs"] = {**given, **stage.teacher.wrapper_kwargs}
    if len({stage.teacher and stage.teacher.wrapper_kwargs.get("teacher_dtype") for stage in stages}) > 1:
        raise ConfigError("train: one teacher_dtype for all stages, which share the teacher; set device.teacher_dtype")


def build_test_loader(config: Mapping[str, Any], accelerator: Accelerator | None, *, is_needed: bool = False) -> Any:
    """The loader of ``test.test_data_loader``, prepared; ``None`` where the config has none and it is not needed."""
    section = (config.get("test") or {}).get("test_data_loader")
    if section is None and is_needed:
        raise ConfigError("has no test.test_data_loader to evaluate on")
    if section is None:
        return None
    check_dropped("test.test_data_loader", section, config["datasets"])
    if accelerator:
        section = dict(section)
        pin_memory(section, accelerator.device)
    loader = build_data_loader(config["datasets"][section["dataset_id"]], section, False, accelerator)
    return accelerator.prepare(loader) if accelerator else loader


def pin_memory(loader: Any, device: torch.device) -> None:
    """Lets the batches of a loader's section wait for a GPU in pinned memory, unless its ``kwargs`` say otherwise."""
    if device.type == "cuda":
        loader["kwargs"] = {"pin_memory": True, **(loader.get("kwargs") or {})}


def compile_models(which: str | None, student: nn.Module, teacher: nn.Module | None) -> None:
    """``torch.compile`` in place for 'student', 'teacher' or 'both': names, hooks and checkpoints stay the same."""
    for name, model in (("student", student), ("teacher", teacher)):
        if which in (name, "both") and model is not None:
            logger.info("torch.compile: the first batches of the %s may take minutes", name)
            model.compile()


def num_classes_of(student: nn.Module, entry: Mapping[str, Any]) -> int | None:
    """The size of the student's classifier; ``None`` where neither the model nor its entry says it."""
    value = getattr(student, "num_classes", None) or (entry.get("kwargs") or {}).get("num_classes")
    return value if isinstance(value, int) and value > 0 else None


def _warn(built: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Tells what this runner does not read, and schedulers whose cycle does not end with their stage."""
    where, entry = student_entry(built)
    if entry.get("sync_bn"):
        logger.warning("%s.sync_bn: not read by refilled", where)
    if (built["models"].get("teacher_model") or {}).get("dst_ckpt"):
        logger.warning("%s.dst_ckpt: not read by refilled; only the student is saved", TEACHER)
    views, planned = (built.get("teacher_cache") or {}).get("views"), sum(stage.epochs for stage in stages)
    if views and planned >= _FEW_VIEWS * views:
        costs = (
            "the same few crops again and again cost accuracy where images are few; as many views as epochs cost none"
        )
        logger.warning("teacher_cache.views: %d for %d epochs: %s", views, planned, costs)
    for stage in stages:
        scheduler = stage.section.get("scheduler") or {}
        name = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}.get(str(scheduler.get("key")), "")
        length, place = (scheduler.get("kwargs") or {}).get(name), f"{stage.path}.scheduler.kwargs.{name}"
        if length is None or scheduler.get("scheduling_step"):
            continue
        if length != stage.epochs:
            epochs = f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''}"
            logger.warning("%s: %s, but the stage has %s", place, length, epochs)
        elif name == "total_steps" and length == 1:
            logger.warning(f"{place}: 1 step is the last of its cycle: almost nothing is learned; remove the scheduler")
