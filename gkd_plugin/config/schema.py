"""The table of a configuration: the keys that torchdistill 1.1.5 and our runner read, and what each may hold.

torchdistill ignores what it does not read, so a key that is missing here is a misspelling.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler
from torchdistill.core.interfaces import registry as processes
from torchdistill.datasets.registry import BATCH_SAMPLER_DICT, COLLATE_FUNC_DICT, DATASET_WRAPPER_DICT
from torchdistill.losses import registry as losses
from torchdistill.models.registry import ADAPTATION_MODULE_DICT, AUXILIARY_MODEL_WRAPPER_DICT, MODULE_DICT
from torchdistill.optim.registry import OPTIM_DICT, SCHEDULER_DICT

from gkd_plugin.config import rules
from gkd_plugin.config.kinds import (
    FLAG,
    NUMBER,
    Keys,
    Kind,
    Report,
    Value,
    count,
    each,
    is_of,
    list_of,
    number,
    one_of,
    or_else,
    part,
    refused,
    section,
)
from gkd_plugin.teacher import DTYPES

__all__ = ["TAGS", "configuration"]

_ANY = Value("a section", lambda _: True)
_TEXT = Value("a text", is_of(str))
_LIST = Value("a list", is_of(list))
_SECTION = section({}, has_others=True)
_PATH = Value(
    "a text: the path of a file or folder", lambda given: isinstance(given, str) and given and "\0" not in given
)
_FILE = or_else(_PATH)
_MODULES = list_of("module paths, e.g. ['layer4', 'fc'], or []", is_of(str))
_HOOKED = list_of("module paths, e.g. ['embedding'], or []", is_of(str))
_DEVICE_NAME = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_DEVICE = Value(
    "auto, cpu, cuda, cuda:<number> or mps", lambda given: isinstance(given, str) and _DEVICE_NAME.fullmatch(given)
)

_KWARGS: Keys = {"kwargs": _SECTION}
_ARGS_KWARGS: Keys = {"args": or_else(_LIST), "kwargs": or_else(_SECTION)}
_BOTH = ("key", "kwargs")

_INIT = or_else(section({"args": _LIST, "kwargs": _SECTION}))
TAGS: Mapping[str, Kind] = {
    "!import_get": section({"key": _ANY, "package": _ANY}),
    "!import_call": section({"key": _ANY, "package": _ANY, "init": _INIT}),
    "!import_call_method": section({"package": _ANY, "class_name": _ANY, "method_name": _ANY, "init": _INIT}),
    "!call_method": section(dict.fromkeys(("obj", "method_name", "args", "kwargs", "returns_obj"), _ANY)),
    "!access_by_index_or_key": section({"data": _ANY, "index_or_key": _ANY}),
}
"""What torchdistill reads under each of its tags."""


def _model(*classifiers: str, dst_ckpt: Kind = _FILE) -> Kind:
    keys: Keys = {
        "key": _ANY,  # the rule knows torchvision's models too
        "kwargs": _SECTION,
        "repo_or_dir": or_else(_TEXT),
        "src_ckpt": _FILE,
        "dst_ckpt": dst_ckpt,
        "src_ckpt_classifier": or_else(one_of(classifiers)),
        "quantized": FLAG,
        "sync_bn": FLAG,
        "experiment": _ANY,  # not read; torchdistill's older configs keep an anchor there
    }
    return section(keys, ("kwargs",), rules.model)


_BATCHES = {"batch_size": count(), "classes_per_batch": count(), "samples_per_class": count()}
_LOADER = section(
    {
        "dataset_id": _ANY,
        "sampler": section({"class_or_func": _ANY, "kwargs": or_else(_SECTION)}, then=rules.sampler),
        "batch_sampler": or_else(part(BATCH_SAMPLER_DICT, _KWARGS, _BOTH, base=Sampler, supplied=1, values=_BATCHES)),
        "collate_fn": or_else(one_of(COLLATE_FUNC_DICT)),
        "dataset_wrapper": or_else(part(DATASET_WRAPPER_DICT, _ARGS_KWARGS, supplied=1), None, {}),
        "requires_supp": FLAG,
        "kwargs": _SECTION,
        "cache_output": or_else(refused("is not read any more; remove it")),  # torchdistill's samples have it, empty
    },
    ("sampler", "kwargs"),
    rules.loader,
)

_MODULE = part(ChainMap(ADAPTATION_MODULE_DICT, MODULE_DICT), _KWARGS, _BOTH)
_REDESIGN: Keys = {"sequential": or_else(_MODULES), "frozen_modules": _MODULES, "adaptations": or_else(each(_MODULE))}
_WRAPPER = or_else(
    one_of(("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FullyShardedDataParallel2"))
)
_WRAPPER_SECTION = section({"key": _WRAPPER, "kwargs": or_else(_SECTION)})


def _wrapper(report: Report, path: str, given: Any) -> None:
    (_WRAPPER_SECTION if isinstance(given, Mapping) else _WRAPPER)(report, path, given)


def _role(supplied: str) -> Kind:
    """``teacher``, ``student`` or ``model`` of a stage."""
    names = (supplied, "device", "device_ids", "distributed")
    wrapper_key = or_else(one_of(AUXILIARY_MODEL_WRAPPER_DICT))
    auxiliary: Keys = {"key": wrapper_key, "kwargs": or_else(_SECTION), **_REDESIGN}
    keys: Keys = {
        "forward_proc": one_of(processes.FORWARD_PROC_FUNC_DICT),
        "requires_grad": FLAG,
        "src_ckpt": _FILE,
        "dst_ckpt": _FILE,
        **_REDESIGN,
        "wrapper": _wrapper,
        "forward_hook": section({"input": _HOOKED, "output": _HOOKED}),
        "auxiliary_model_wrapper": part(
            AUXILIARY_MODEL_WRAPPER_DICT, auxiliary, needs=(), then=rules.redesign, names=names
        ),
    }
    return section(keys, (), rules.role)


_ROLES = {"teacher": _role("teacher_model"), "student": _role("student_model"), "model": _role("student_model")}

_RATES: Keys = {"lr": number(0), "momentum": number(0, 1), "weight_decay": number(0)}
_MAX_GRAD_NORM = Value("a number above 0, or null for no bound", lambda given: NUMBER.fits(given) and given > 0)


def _optimizer(*, has_teacher: bool) -> Kind:
    """Of a stage. For settings of single modules, each of torchdistill's two boxes reads a key of its own."""
    name, more = ("module_wise_configs", {"is_teacher": FLAG}) if has_teacher else ("module_wise_kwargs", {})
    module: Keys = {"module": _TEXT, "kwargs": or_else(section(_RATES, has_others=True)), **more}
    keys: Keys = {
        "kwargs": _SECTION,
        "max_grad_norm": or_else(_MAX_GRAD_NORM),
        "grad_accum_step": count(),
        "filters_params": FLAG,
        name: or_else(each(section(module, ("module",)), list)),
    }
    return part(OPTIM_DICT, keys, _BOTH, rules.optimizer, base=Optimizer, supplied=1, values=_RATES)


_SCHEDULER = part(SCHEDULER_DICT, {**_KWARGS, "scheduling_step": count(0)}, _BOTH, base=LRScheduler, supplied=1)

_TEMPERATURES = dict.fromkeys(("temperature", "kl_temp", "ss_temp", "tf_temp", "tau"), number(1e-4, 1e4))
_LOSSES = ChainMap(losses.MIDDLE_LEVEL_LOSS_DICT, losses.LOSS_DICT, losses.LOW_LEVEL_LOSS_DICT)
_HOOK: Keys = {"is_from_teacher": FLAG, "module_path": _TEXT, "io": one_of(("input", "output"))}
_WRAPPED = {"input": section(_HOOK, _HOOK), "target": section({"uses_label": FLAG, **_HOOK})}
_SUB_TERM = section(
    {
        "criterion": part(_LOSSES, _KWARGS, _BOTH, base=nn.Module, values=_TEMPERATURES),
        "criterion_wrapper": or_else(
            part(losses.LOSS_WRAPPER_DICT, _ARGS_KWARGS, supplied=1, values=_WRAPPED, read=_WRAPPED), None, {}
        ),
        "weight": NUMBER,
    },
    ("criterion", "weight"),
    rules.sub_term,
)
_CRITERION = part(
    losses.HIGH_LEVEL_LOSS_DICT,
    {**_ARGS_KWARGS, "func2extract_model_loss": or_else(one_of(losses.FUNC2EXTRACT_MODEL_OUTPUT_DICT))},
    then=rules.criterion,
    values={"sub_terms": or_else(each(_SUB_TERM)), "model_term": or_else(section({"weight": or_else(NUMBER)}))},
    read=(),
)


def _stage(roles: Collection[str], *, is_first: bool) -> Keys:
    """The keys of a stage; later ones may keep the data loaders and the optimizer of the one before."""
    is_there = "a" if "teacher" in roles else "no"
    unread = refused(f"is not read where there is {is_there} models.teacher_model; write {' and '.join(roles)}")
    optimizer = _optimizer(has_teacher="teacher" in roles)
    return {
        "num_epochs": count(),
        "train_data_loader": _LOADER,
        "val_data_loader": _LOADER,
        **{role: kind if role in roles else unread for role, kind in _ROLES.items()},
        "optimizer": optimizer if is_first else or_else(optimizer, {}),
        "scheduler": or_else(_SCHEDULER, None, {}),
        "criterion": _CRITERION,
        "pre_epoch_process": one_of(processes.PRE_EPOCH_PROC_FUNC_DICT),
        "pre_forward_process": one_of(processes.PRE_FORWARD_PROC_FUNC_DICT),
        "post_forward_process": one_of(processes.POST_FORWARD_PROC_FUNC_DICT),
        "post_epoch_process": one_of(processes.POST_EPOCH_PROC_FUNC_DICT),
    }


def _train(stages: Sequence[str], roles: Collection[str]) -> Kind:
    """One training, or stages that follow each other: then hardly anything is read of ``train`` itself."""
    needs = ("num_epochs", *roles, "criterion")
    needs_first = (*needs, "train_data_loader", "optimizer")
    for_all = {"log_freq": count(), "val_freq": count()}
    first = _stage(roles, is_first=True)
    if not stages:
        return section({**for_all, **first, "stage1": _ANY}, needs_first, rules.stage)
    moved = refused(f"is not read where there are stages; put it into {', '.join(stages)}")
    later = section(_stage(roles, is_first=False), needs, rules.stage)
    keys: Keys = {
        **for_all,
        **dict.fromkeys(first, moved),
        **dict.fromkeys(roles, section({"dst_ckpt": _FILE})),
        **dict.fromkeys(stages, later),
        stages[0]: section(first, needs_first, rules.stage),
    }
    return section(keys, then=rules.stages)


_DEVICES = section(
    {
        "default": or_else(_DEVICE),
        "teacher": or_else(_DEVICE),
        "precision": or_else(one_of(("no", "bf16", "fp16")), None, False),  # YAML reads a bare no as false
        "teacher_dtype": or_else(one_of(tuple(DTYPES))),
        "channels_last": FLAG,
        "compile": or_else(one_of(("student", "teacher", "both"))),
    }
)
_CACHE = section({"views": count(), "folder": _FILE, "seed": count(0)}, ("views",))
_NO_CACHE = refused("there is no models.teacher_model whose answers could be kept; remove it")


def configuration(stages: Sequence[str], *, has_teacher: bool) -> Kind:
    """The whole table.

    Args:
        stages: keys of the stages in ``train``, in order; none where ``train`` is the only one.
        has_teacher: whether the config has a teacher.
    """
    student = _model("new", "extended", "centres")
    teacher = _model("new", "extended", dst_ckpt=or_else(refused("is not read; only the student is saved")))
    models: Keys = {"teacher_model": or_else(teacher), "student_model": student, "model": student}
    keys: Keys = {
        "dependencies": _ANY,
        "models": section(models, then=rules.models),
        "datasets": section({}, has_others=True, then=rules.datasets),
        "train": _train(stages, ("teacher", "student") if has_teacher else ("model",)),
        "test": section({"test_data_loader": _LOADER, "log_freq": count()}, ("test_data_loader",)),
        "device": or_else(_DEVICES),
        "teacher_cache": or_else(_CACHE if has_teacher else _NO_CACHE),
        "tracker": or_else(section({"engine": or_else(one_of(("trackio", "wandb"))), "kwargs": or_else(_SECTION)})),
    }
    return section(keys, ("models", "datasets", "train"))
