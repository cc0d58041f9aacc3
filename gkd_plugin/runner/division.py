"""A frozen teacher in parts: over the GPUs of one process (Accelerate), or over several processes (FSDP2)."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator, dispatch_model, infer_auto_device_map
from accelerate.utils import compute_module_sizes, get_balanced_memory, get_max_memory
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gkd_plugin.cache.fingerprint import model_key
from gkd_plugin.config.stages import Stage
from gkd_plugin.data import Stream
from gkd_plugin.errors import ConfigError, first_line
from gkd_plugin.runner.devices import Placement
from gkd_plugin.teacher import DTYPES

logger = logging.getLogger(__name__)

_LISTS = (nn.Sequential, nn.ModuleList)
_SHARE = 0.6  # of a GPU's free memory; the student and what both models compute need the rest


def divide(
    teacher: nn.Module, stages: Sequence[Stage], datasets: Any, placement: Placement, accelerator: Accelerator
) -> None:
    """What ``device.teacher`` 'auto' or 'sharded' says, done to a teacher on the CPU, which then stays as it is.

    Its ``home`` is the device that it takes images on, its ``whole_key`` the :func:`model_key` that it had as a whole.
    """
    how = placement.teacher_device
    if not isinstance(how, str):
        return
    for stage in stages:
        _check_stage(stage, how, datasets)
    teacher.eval().requires_grad_(False)
    if placement.teacher_dtype is not None:
        teacher.to(DTYPES[placement.teacher_dtype])
    teacher.whole_key = model_key(teacher)  # type: ignore[assignment]
    teacher.home = _shard(teacher, accelerator) if how == "sharded" else _spread(teacher)  # type: ignore[assignment]


def _check_stage(stage: Stage, how: str, datasets: Any) -> None:
    """Refuses what would need the whole teacher, or asks it in some of the processes only."""
    role = stage.teacher
    if role is None or role.wrapper != "refilled_teacher":
        place = f"{stage.path}.teacher.auxiliary_model_wrapper.key"
        raise ConfigError(f"device.teacher: only the wrapper 'refilled_teacher' can be {how!r}; set {place} to it")
    sections = {"": role.section, "auxiliary_model_wrapper.": role.section["auxiliary_model_wrapper"]}
    sections["auxiliary_model_wrapper.kwargs."] = role.wrapper_kwargs
    for key in ("src_ckpt", "sequential", "wrapper", "teacher_device", "teacher_dtype"):
        for place, section in sections.items():
            if section.get(key):
                raise ConfigError(f"{role.path}.{place}{key}: not for a teacher that device.teacher: {how!r} divides")
    for loader in (stage.loader, stage.val_loader):
        if how == "sharded" and loader and isinstance(datasets[loader["dataset_id"]], Stream):
            name = f"datasets.{loader['dataset_id']} is a stream"
            raise ConfigError(f"device.teacher: {name}, of which processes may have unequal parts: not with 'sharded'")


def _is_row(module: nn.Module) -> bool:
    """Whether its parts only follow each other, as in a list, or in a stage of a network with its ``blocks``."""
    return type(module) in _LISTS or isinstance(getattr(module, "blocks", None), _LISTS)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts that have weights, as large as they come; of a row, each by itself."""
    for child in module.children():
        if _is_row(child):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _shard(teacher: nn.Module, accelerator: Accelerator) -> torch.device:
    """Each process keeps a part of every weight; a block is whole in all of them while it computes."""
    device: torch.device = accelerator.device
    count = accelerator.num_processes
    for weight in teacher.parameters():  # FSDP takes neither single numbers nor channels_last
        weight.data = weight.data.contiguous() if weight.ndim else weight.data.to(device)
    whole = {weight for weight in teacher.parameters() if not weight.ndim}
    blocks, mesh = list(dict.fromkeys(_blocks(teacher))), init_device_mesh(device.type, (count,))
    for part in (*blocks, teacher):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    vars(teacher)["module"] = teacher  # torchdistill looks there for what FSDP wraps; fully_shard wraps nothing
    text = "the teacher is divided over %d processes; each puts one of its %d blocks together at a time"
    logger.info(text, count, len(blocks))
    return device


def _spread(teacher: nn.Module) -> torch.device:
    """The parts are on the GPUs, one after the other, and where they are full in the CPU's memory."""
    parts = [module for module in teacher.modules() if module is not teacher and not _is_row(module)]
    fixed = sorted({type(part).__name__ for part in parts})  # a residual connection, say, is not divided
    sizes = compute_module_sizes(teacher)
    memory = {place: int(size * _SHARE) for place, size in get_max_memory().items() if place != "cpu"}
    memory["cpu"] = 2 * sizes[""]  # it is there already; Accelerate keeps room for another copy of the largest part
    try:
        memory = get_balanced_memory(teacher, memory, fixed, low_zero=True)  # the student is on the first GPU
        places = infer_auto_device_map(teacher, memory, fixed)
        home = next(iter(places.values()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights of the model itself are no modules
            dispatch_model(teacher, places, main_device=home, preload_module_classes=fixed)
    except (IndexError, KeyError, ValueError) as error:
        cannot = f"Accelerate cannot divide {type(teacher).__name__}: {first_line(error)}"
        raise ConfigError(f"device.teacher: 'auto': {cannot}; try 'sharded'") from error
    held = {place: sum(sizes[name] for name, at in places.items() if at == place) for place in places.values()}
    if len(held) > 1:
        text = ", ".join(f"{at} {size / 2**20:.1f} MiB" for at, size in held.items())
        logger.info("the teacher is divided: %s", text)
    return torch.device("cuda", home) if isinstance(home, int) else torch.device(home)
