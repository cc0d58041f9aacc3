"""The ``device:`` section of a YAML: where the student and the teacher live, and in what precision."""

import ctypes
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from gkd_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

DIVISIONS = ("auto", "sharded")  # of a teacher: over GPUs and memory, over processes; see ``runner.division``
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class Placement:
    """Where things run; a teacher without a device of its own is where the student is."""

    device: torch.device
    teacher_device: torch.device | str | None  # a str is one of DIVISIONS
    precision: str  # of autocast: 'no' (float32), 'bf16' or 'fp16'
    teacher_dtype: str | None = None  # what the teacher's weights are held in; None leaves them
    channels_last: bool = False
    compile: str | None = None  # 'student', 'teacher' or 'both'


def available_devices() -> list[str]:
    """The devices of this machine, as the YAML names them."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(["cuda", *cuda] if cuda else []), *mps]


def read_placement(config: Mapping[str, Any], device: str | None = None, *, one_device: bool = False) -> Placement:
    """Reads ``device:`` of a valid config; ``--device`` goes before ``default``, ``one_device`` before ``teacher``."""
    section = config.get("device") or {}
    key, name = ("--device", device) if device is not None else ("device.default", section.get("default") or "auto")
    default = find_device(key, name)
    teacher = None if one_device else section.get("teacher")
    if teacher in DIVISIONS:
        _check_division(teacher, section.get("compile"))
    elif teacher is not None:
        teacher = find_device("device.teacher", teacher)
    precision, dtype = section.get("precision") or "no", section.get("teacher_dtype")  # YAML reads a bare no as False
    _check_available("device.precision", precision, default)
    _check_available("device.teacher_dtype", dtype, teacher if isinstance(teacher, torch.device) else default)
    is_faster = default.type == "cpu" or (default.type == "cuda" and precision != "no")  # or about as fast
    is_last = section.get("channels_last")
    return Placement(
        default, teacher, precision, dtype, is_faster if is_last is None else is_last, section.get("compile")
    )


def make_accelerator(placement: Placement) -> Accelerator:
    """An Accelerator on the placement's device; one process may make several, one after the other."""
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())  # noqa: SLF001
    if placement.device.type == "cpu":
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        _keep_freed_memory()
    elif "LOCAL_RANK" not in os.environ:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(placement.device)
    is_cpu = placement.device.type == "cpu"
    torch.backends.cudnn.benchmark = not (is_cpu or torch.backends.cudnn.deterministic)  # the images have one size
    loading = DataLoaderConfiguration(non_blocking=True)  # from pinned memory, see parts.pin_memory
    accelerator = Accelerator(cpu=is_cpu, mixed_precision=placement.precision, dataloader_config=loading)
    # torchdistill 1.1.5 reads state.use_fp16 for a frozen teacher; Accelerate dropped it. Autocast does that work.
    accelerator.state.use_fp16 = False
    return accelerator


def _keep_freed_memory() -> None:
    """glibc gives each large block that is freed back to the system; to get the next one may take half of the time.

    Where the user has chosen (``MALLOC_…``, another allocator in ``LD_PRELOAD``) it stays as it is.
    """
    is_chosen = "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform == "linux" and not is_chosen and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_MAX, 0)


def cores() -> int:
    """The cores that this process may use: in a job of a cluster, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(key: str, name: str) -> torch.device:
    """The device of a name, ``'auto'`` too; raises ConfigError at ``key`` where this machine has none of it."""
    devices = available_devices()
    if name == "auto":
        return torch.device(next((best for best in ("cuda", "mps") if best in devices), "cpu"))
    if name not in devices:
        raise ConfigError(f"{key}: there is no device {name!r} here; this machine has: auto, {', '.join(devices)}")
    return torch.device(name)


def _check_division(how: str, compiled: str | None) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if how == "sharded" and processes == 1:
        start = "torchrun --nproc_per_node 2 -m gkd_plugin run …"
        raise ConfigError(f"device.teacher: 'sharded' is over several processes, this is one; start them: {start}")
    if how == "auto" and processes > 1:
        raise ConfigError(f"device.teacher: 'auto' is for one process, these are {processes}; use 'sharded'")
    if compiled in ("teacher", "both"):
        raise ConfigError(f"device.compile: {compiled!r} is not for a divided teacher (device.teacher: {how!r})")


def _check_available(key: str, name: str | None, device: torch.device) -> None:
    if name == "fp16" and device.type != "cuda":
        raise ConfigError(f"{key}: 'fp16' needs a CUDA device, not {str(device)!r}; use 'bf16'")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{key}: {torch.cuda.get_device_name(device)} has no 'bf16'; use 'fp16'")
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    if name == "bf16" and device.type == "cpu" and not any(cpu.get(f"{kind}_bf16", True) for kind in ("avx512", "amx")):
        logger.warning("%s: this CPU has no instructions for bf16, so float32 ('no') is several times as fast", key)
