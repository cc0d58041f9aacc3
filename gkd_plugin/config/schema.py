"""What a config may hold: the keys that torchdistill 1.1.5 and our runner read, and the registries that keys name.

torchdistill ignores what it does not read, so a key that is missing here is a misspelling.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = [
    "ADAPTATION",
    "AUXILIARY_WRAPPER",
    "CRITERION",
    "DATALOADER_KEYS",
    "DEVICE",
    "FORWARD_HOOK",
    "KEY_ARGS_KWARGS",
    "KEY_KWARGS",
    "LOADER",
    "MODEL",
    "MODELS",
    "MODULE_WRAPPERS",
    "OPTIMIZER",
    "PROCESSES",
    "REDESIGN",
    "ROLE",
    "SAMPLER",
    "SCHEDULER",
    "STAGE",
    "STAGE_NAME",
    "STAGE_ROLE",
    "SUB_TERM",
    "TAG_KEYS",
    "TEACHER_CACHE",
    "TEST",
    "TOP",
    "TRACKER",
    "is_private",
    "process_registry",
    "usable",
]

TOP = frozenset({"dependencies", "datasets", "models", "train", "test", "device", "tracker", "teacher_cache"})
DEVICE = frozenset({"default", "teacher", "precision", "teacher_dtype", "channels_last", "compile"})
TEACHER_CACHE = frozenset({"views", "folder", "seed"})
TRACKER = frozenset({"engine", "kwargs"})
TEST = frozenset({"test_data_loader", "log_freq"})

MODELS = frozenset({"teacher_model", "student_model", "model"})
MODEL = frozenset(
    {"key", "kwargs", "repo_or_dir", "src_ckpt", "dst_ckpt", "quantized", "sync_bn", "experiment"}
    | {"src_ckpt_classifier"}  # ours
)  # torchdistill does not read 'experiment', its own older configs keep an anchor there

KEY_KWARGS = frozenset({"key", "kwargs"})
KEY_ARGS_KWARGS = frozenset({"key", "args", "kwargs"})

LOADER = frozenset(
    {"dataset_id", "sampler", "batch_sampler", "collate_fn", "dataset_wrapper", "requires_supp", "kwargs"}
)
SAMPLER = frozenset({"class_or_func", "kwargs"})
DATALOADER_KEYS = frozenset({"batch_size", "shuffle", "sampler", "drop_last"})
"""DataLoader arguments that a batch sampler excludes."""

REDESIGN = frozenset({"sequential", "frozen_modules", "adaptations"})
AUXILIARY_WRAPPER = KEY_KWARGS | REDESIGN
ADAPTATION = KEY_KWARGS
FORWARD_HOOK = frozenset({"input", "output"})
ROLE = REDESIGN | {
    "forward_proc",
    "forward_hook",
    "requires_grad",
    "wrapper",
    "auxiliary_model_wrapper",
    "src_ckpt",
    "dst_ckpt",
}
STAGE_ROLE = frozenset({"dst_ckpt"})
"""What torchdistill reads of ``train.teacher``/``student``/``model`` where there are stages."""
MODULE_WRAPPERS = frozenset(
    {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FullyShardedDataParallel2"}
)

PROCESSES = ("pre_epoch_process", "pre_forward_process", "post_forward_process", "post_epoch_process")
STAGE = frozenset(
    {"num_epochs", "train_data_loader", "val_data_loader", "optimizer", "scheduler", "criterion", *PROCESSES}
)
EVERY_STAGE = frozenset({"log_freq", "val_freq"})
"""Keys of ``train`` that hold for all stages; torchdistill does not read the second."""
STAGE_NAME = re.compile(r"stage([1-9][0-9]*)")
OPTIMIZER = frozenset({"key", "kwargs", "max_grad_norm", "grad_accum_step", "filters_params"})
SCHEDULER = frozenset({"key", "kwargs", "scheduling_step"})
CRITERION = frozenset({"key", "kwargs", "args", "func2extract_model_loss"})
SUB_TERM = frozenset({"criterion", "criterion_wrapper", "weight"})

TAG_KEYS: Mapping[str, Collection[str]] = {
    "!import_get": ("key", "package"),
    "!import_call": ("key", "package", "init"),
    "!import_call_method": ("package", "class_name", "method_name", "init"),
    "!call_method": ("obj", "method_name", "args", "kwargs", "returns_obj"),
    "!access_by_index_or_key": ("data", "index_or_key"),
}
"""The keys that torchdistill reads under each of its tags."""


def is_private(key: object) -> bool:
    """Whether a key is only a place for an anchor: it starts with ``_`` or ``x-``."""
    return isinstance(key, str) and key.startswith(("_", "x-"))


def process_registry(name: str) -> Mapping[str, Any]:
    """The registry of torchdistill for one of :data:`PROCESSES`."""
    from torchdistill.core.interfaces import registry

    found: Mapping[str, Any] = getattr(registry, f"{name.removesuffix('ess').upper()}_FUNC_DICT")
    return found


def usable(registry: Mapping[str, Any], base: type | None = None) -> list[str]:
    """The keys of a registry that are worth offering.

    torchdistill fills its registries with every class in a module, ``Any`` and ``Counter`` among the schedulers.
    """
    return [
        key
        for key, part in registry.items()
        if not key.startswith("_")
        and not (inspect.isclass(part) and (part is base or (base and not issubclass(part, base))))
    ]
