"""The table of a configuration: the keys that torchdistill 1.1.5 and our runner read, and what each may hold.

torchdistill ignores what it does not read, so a key that is missing here is a misspelling. Before the table stand the
rules that no table holds. Losses, optimizers, schedules and data loaders check themselves: each is built on trial.
"""

import contextlib
import copy
import math
import os
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Sampler
from torchdistill.core.interfaces import registry as processes
from torchdistill.datasets.registry import BATCH_SAMPLER_DICT, COLLATE_FUNC_DICT, DATASET_WRAPPER_DICT
from torchdistill.losses import registry as losses
from torchdistill.models.registry import ADAPTATION_MODULE_DICT, AUXILIARY_MODEL_WRAPPER_DICT, MODEL_DICT, MODULE_DICT
from torchdistill.optim.registry import OPTIM_DICT, SCHEDULER_DICT, get_optimizer, get_scheduler
from torchvision import models as torchvision_models

from gkd_plugin.config.kinds import FLAG, Kind, Report, count, each, maybe, never, number, one_of, part, section, value
from gkd_plugin.config.stages import names_weights, stage_names, stages_of, student_entry
from gkd_plugin.config.tree import Tagged, at, is_private, items, resolve_target
from gkd_plugin.errors import ConfigError, is_number, nearest
from gkd_plugin.models.timm_model import check_model_name, unknown_keyword
from gkd_plugin.teacher import DTYPES


def _check_datasets(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    for key, given in section.items():
        if not isinstance(given, Tagged) and not is_private(key):
            report.refuse(at(path, key), given, "must be a data set, e.g. !import_call {key: …}")
    if all(is_private(key) for key in section):
        report.add(path, "is empty; name at least one data set")


def _check_models(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    if not {"student_model", "model"} & section.keys():
        report.add(at(path, "student_model"), "missing; name the model to train")


def _check_model(report: Report, path: str, entry: Mapping[Any, Any]) -> None:
    """What torchdistill would call: torchvision's function of that name, otherwise the registered one."""
    _check_file(report, path, entry)
    if entry.get("src_ckpt_classifier") == "extended" and not entry.get("src_ckpt"):
        report.add(at(path, "src_ckpt_classifier"), "'extended' given; needs the src_ckpt whose classifier it extends")
    if (prefix := entry.get("src_ckpt_prefix")) is not None and not entry.get("src_ckpt"):
        report.refuse(at(path, "src_ckpt_prefix"), prefix, "needs the src_ckpt whose weights it chooses")
    if entry.get("repo_or_dir") is not None:
        return
    module = torchvision_models.quantization if entry.get("quantized") is True else torchvision_models
    names = [name.removeprefix("quantized_") for name in torchvision_models.list_models(module=module)]
    functions = {name: getattr(module, name) for name in names}
    functions |= {name: part for name, part in MODEL_DICT.items() if name not in vars(module)}
    key, kwargs = entry.get("key"), entry.get("kwargs")
    report.check(at(path, "key"), key, one_of(functions))
    if isinstance(key, str) and key in functions and report.is_clean(at(path, "kwargs")):
        report.bind(path, functions[key], {"kwargs": kwargs}, values=_MODEL_VALUES)
    if key == "timm_model" and isinstance(kwargs, Mapping) and isinstance(kwargs.get("model_name"), str):
        with report.trial(at(path, "kwargs.model_name")):
            check_model_name(kwargs["model_name"])
            if found := unknown_keyword(kwargs["model_name"], kwargs):
                report.add(at(path, f"kwargs.{found[0]}"), f"unknown argument; {found[1]}")


def _check_file(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """A ``src_ckpt`` must exist: torchdistill would go on with random weights."""
    name = section.get("src_ckpt") or ""
    if report.produced is None or not isinstance(name, str) or name.startswith(("http://", "https://")):
        return
    if name and not Path(name).is_file() and absolute(name) not in report.produced:
        report.add(at(path, "src_ckpt"), f"no such file: {name}; train it first, or leave src_ckpt empty")


def absolute(path: str) -> str:
    """The path of a checkpoint as it is compared with others."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute() keeps '..'


def _check_loader(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Its data set must exist, and what torchdistill gives the DataLoader excludes some arguments."""
    given, sets = section.get("dataset_id"), report.tree.get("datasets")
    if isinstance(sets, Mapping) and given not in list(sets):
        text = "missing" if given is None else f"{given!r} is not in datasets"
        report.add(at(path, "dataset_id"), f"{text}; {nearest(given, map(str, sets))}")
    kwargs, where = section.get("kwargs"), at(path, "kwargs")
    if not isinstance(kwargs, Mapping):
        return
    names, values = ("sampler", "batch_sampler", "collate_fn"), {"batch_size": count(), "num_workers": count(0, 999)}
    report.bind(path, DataLoader, {"kwargs": kwargs}, supplied=1, names=names, values=values)
    batches: dict[str, Any] = {"sampler": [0]}
    if section.get("batch_sampler") is not None:
        batches = {"batch_sampler": [[0]]}
        for key in sorted({"batch_size", "shuffle", "drop_last"} & kwargs.keys()):
            report.add(at(where, key), "cannot be given beside a batch_sampler; remove it")
    elif kwargs.get("shuffle"):
        report.add(at(where, "shuffle"), "excludes a sampler, and torchdistill always gives one; remove it")
    if report.is_clean(where, kwargs):
        with report.trial(where):
            DataLoader(range(1), **batches, **kwargs)  # type: ignore[arg-type]


def _check_sampler(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """What torchdistill calls takes the data set first."""
    target = section.get("class_or_func")
    if isinstance(target, Tagged) and target.tag == "!import_get" and report.imports:
        with contextlib.suppress(ConfigError):  # reported where all tags are
            report.bind(path, resolve_target(target), {"kwargs": section.get("kwargs")}, supplied=1)


def _check_role(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    if "forward_proc" not in section:
        report.add(at(path, "forward_proc"), "missing; write forward_proc: 'forward_batch_only'")
    _check_file(report, path, section)
    _check_redesign(report, path, section)


def _check_redesign(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Modules that a redesigned model adds (``+name``) must be described."""
    steps, added = section.get("sequential"), section.get("adaptations") or {}
    for step in steps if isinstance(steps, list) and isinstance(added, Mapping) else []:
        if isinstance(step, str) and step.startswith("+") and step[1:] not in added:
            report.add(at(path, "sequential"), f"{step!r} is not in adaptations; {nearest(step[1:], added)}")


def _check_sub_term(report: Report, path: str, term: Mapping[Any, Any]) -> None:
    """A loss of torch needs a wrapper that picks its inputs."""
    key = dict(items(term.get("criterion"))).get("key")
    is_low = key in [*losses.LOSS_DICT, *losses.LOW_LEVEL_LOSS_DICT] and key not in losses.MIDDLE_LEVEL_LOSS_DICT
    if is_low and not term.get("criterion_wrapper"):
        wrappers = nearest("", losses.LOSS_WRAPPER_DICT)
        report.add(at(path, "criterion_wrapper"), f"missing; {key!r} needs one to pick its inputs ({wrappers})")


def _try_criterion(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    if report.is_clean(path, section):
        with report.trial(path):
            losses.get_high_level_loss(copy.deepcopy(section))


def _try_optimizer(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Builds it on trial for one weight, or one in each of the module-wise groups."""
    report.optimizer = None
    if not report.is_clean(path, section):
        return
    name = "module_wise_configs" if section.get("module_wise_configs") else "module_wise_kwargs"
    settings = [entry.get("kwargs") or {} for entry in section.get(name) or []]
    groups = [{**own, "params": [nn.Parameter(torch.zeros(2, 2))]} for own in settings]
    weights = nn.ModuleList([nn.ParameterList([torch.zeros(2, 2)])])
    kwargs = {"filters_params": section.get("filters_params", True), **copy.deepcopy(section["kwargs"])}
    with report.trial(path):
        report.optimizer = get_optimizer(groups or weights, section["key"], **kwargs)
        for index, own in enumerate(settings):
            for key in own.keys() - report.optimizer.defaults.keys():
                where = at(path, f"{name}.{index}.kwargs.{key}")
                report.add(where, f"unknown argument; {nearest(key, report.optimizer.defaults)}")


def _try_schedule(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """Builds the schedule of the learning rate on trial; where an epoch is one step of it, it runs its course."""
    where, is_refilled = at(path, "optimizer"), dict(items(section.get("criterion"))).get("key") == "refilled"
    if is_refilled and not section.get("optimizer") and report.is_clean(where):  # losses.refilled refuses it later
        report.add(where, "missing; every stage with criterion 'refilled' needs its own")
    scheduler, where = section.get("scheduler"), at(path, "scheduler")
    if not scheduler or report.optimizer is None or not report.is_clean(where, scheduler):
        return
    is_by_epoch = not scheduler.get("scheduling_step") and "post_epoch_process" not in section
    epochs = section["num_epochs"] if is_by_epoch and report.is_clean(at(path, "num_epochs")) else 1
    steps = scheduler["kwargs"].get("total_steps") if scheduler["key"] == "OneCycleLR" else None
    if isinstance(steps, int) and 0 < steps < epochs:  # it takes no step after its last
        report.add(at(where, "kwargs.total_steps"), f"{steps} given, but {at(path, 'num_epochs')} is {epochs}")
        return
    warm_up = scheduler["kwargs"].get("pct_start", 0.3) if steps else None
    if isinstance(steps, int) and isinstance(warm_up, float) and warm_up * steps == 1:  # it divides by zero
        report.add(at(where, "kwargs.pct_start"), f"its part of {steps} steps is one; OneCycleLR needs a little more")
        return
    if scheduler["key"] == "ReduceLROnPlateau":
        _check_plateau(report, path, section)
    with report.trial(where):
        kwargs = copy.deepcopy(scheduler["kwargs"])
        schedule = get_scheduler(copy.deepcopy(report.optimizer), scheduler["key"], **kwargs)
        for _ in range(min(epochs, 1000)):
            schedule.step(*([0.0] if isinstance(schedule, ReduceLROnPlateau) else []))


def _check_plateau(report: Report, path: str, section: Mapping[Any, Any]) -> None:
    """It is given the top-1 on the validation set after each epoch, as upstream's scripts do."""
    mode, where = section["scheduler"]["kwargs"].get("mode", "min"), at(path, "scheduler")
    if mode != "max":
        report.add(at(where, "kwargs.mode"), f"{mode!r} given; must be 'max', because it watches the validation top-1")
    train = report.tree["train"]
    if not _is_validated(train, section) or train.get("val_freq", 1) != 1:
        needs = "a val_data_loader, val_freq 1, and a stage that trains the classifier"
        report.add(where, f"ReduceLROnPlateau watches the validation top-1 of each epoch; it needs {needs}")


def _is_validated(train: Mapping[Any, Any], stage: Mapping[Any, Any]) -> bool:
    """Whether a stage of ``train`` has a top-1 on a validation set, perhaps that of a stage before."""
    has_set = any(part.get("val_data_loader") for part in (train, *train.values()) if isinstance(part, Mapping))
    return has_set and dict(items(dict(items(stage.get("criterion"))).get("kwargs"))).get("stage") != "embedding"


def _check_choice(report: Report, path: str, train: Mapping[Any, Any]) -> None:
    """What chooses an epoch goes by the validation top-1 of the last stage."""
    names = stage_names(train)
    last = train[names[-1]] if names else train
    for key in ("keep", "patience"):
        is_given = train.get(key) not in (None, "last") and report.is_clean(at(path, key))
        if is_given and isinstance(last, Mapping) and not _is_validated(train, last):
            needs = "a val_data_loader, and a last stage that trains the classifier"
            report.add(at(path, key), f"goes by the validation top-1 of the last stage; it needs {needs}")


def _check_start(report: Report, _: str, tree: Mapping[Any, Any]) -> None:
    """Class centres of an embedding that knows nothing are a worse start for a classifier than random weights."""
    if not (report.is_clean("models") and report.is_clean("train")):
        return
    where, entry = student_entry(tree)
    may_be_trained = names_weights(entry) or entry.get("repo_or_dir")
    if entry.get("src_ckpt_classifier") == "centres" and not may_be_trained and stages_of(tree)[0].trains_classifier:
        cures = "give it pretrained: True in its kwargs or a src_ckpt, or remove the key"
        report.add(at(where, "src_ckpt_classifier"), f"'centres' given, but the student is untrained; {cures}")


_ANY = value("a section")
_TEXT = value("a text", of=str)
_LIST = value("a list", of=list)
_SECTION = section({}, has_others=True)
_FILE = maybe(value("a text: the path of a file or folder", lambda x: isinstance(x, str) and x and "\0" not in x))
_MODULES = value("a list of module paths, e.g. ['layer4', 'fc'], or []", of=list[str])
_HOOKED = value("a list of module paths, e.g. ['embedding'], or []", of=list[str])
_TEACHERS_DEVICE = value(
    "auto or sharded (divided), cpu, cuda, cuda:<number> or mps",
    lambda x: re.fullmatch(r"auto|sharded|cpu|mps|cuda(:\d+)?", str(x)),
)
_DEVICE = value("auto, cpu, cuda, cuda:<number> or mps", lambda x: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(x)))

_RATE = value(  # or one for each group of parameters
    "a finite number, 0 or more",
    lambda x: all(is_number(y) and 0 <= y < math.inf for y in (x if isinstance(x, list) else [x])),
)
TRACKERS = ("trackio", "wandb", "tensorboard")
"""The first two are torchdistill's."""
# by the names that torch's and timm's parts have in common: what their own checks let through
_MODEL_VALUES = {"pretrained": maybe(FLAG), "num_classes": maybe(count(0, 10**6)), "in_chans": maybe(count(1, 999))}
_RATES = {"lr": number(0), "momentum": number(0, 1), "weight_decay": number(0), "dampening": number(0, 1)}
_SCHEDULE_VALUES = {
    **dict.fromkeys(("T_0", "T_max", "step_size", "total_iters"), count()),
    **dict.fromkeys(("epochs", "steps_per_epoch", "total_steps"), maybe(count())),
    **dict.fromkeys(("base_lr", "eta_min", "max_lr", "min_lr"), _RATE),
    **dict.fromkeys(("factor", "gamma"), number(0)),
}
_TEMPERATURES = dict.fromkeys(
    ("temperature", "student_temperature", "relationship_temperature", "kl_temp", "ss_temp", "tf_temp", "tau"),
    number(1e-4, 1e4),
)

_KWARGS = {"kwargs": _SECTION}
_ARGS_KWARGS = {"args": maybe(_LIST), "kwargs": maybe(_SECTION)}
_BOTH = ("key", "kwargs")

_INIT = maybe(section({"args": _LIST, "kwargs": _SECTION}))
TAGS: Mapping[str, Kind] = {
    "!import_get": section({"key": _ANY, "package": _ANY}),
    "!import_call": section({"key": _ANY, "package": _ANY, "init": _INIT}),
    "!import_call_method": section({"package": _ANY, "class_name": _ANY, "method_name": _ANY, "init": _INIT}),
    "!call_method": section(dict.fromkeys(("obj", "method_name", "args", "kwargs", "returns_obj"), _ANY)),
    "!access_by_index_or_key": section({"data": _ANY, "index_or_key": _ANY}),
}
"""What torchdistill reads under each of its tags."""


def _model(*classifiers: str) -> Kind:
    keys = {
        "key": _ANY,  # the rule knows torchvision's models too
        "kwargs": _SECTION,
        "repo_or_dir": maybe(_TEXT),
        "src_ckpt": _FILE,
        "dst_ckpt": _FILE,
        "src_ckpt_prefix": maybe(_TEXT),
        "src_ckpt_classifier": maybe(one_of(classifiers)),
        "quantized": FLAG,
        "sync_bn": FLAG,
        "experiment": _ANY,  # not read; torchdistill's older configs keep an anchor there
    }
    return section(keys, ("kwargs",), _check_model)


_CLASS = value("the class itself, e.g. !import_get {key: 'torch.utils.data.RandomSampler'}", lambda _: False)
_BATCHES = {"batch_size": count(), "classes_per_batch": count(), "samples_per_class": count()}
_LOADER = section(
    {
        "dataset_id": _ANY,
        "sampler": section({"class_or_func": _CLASS, "kwargs": maybe(_SECTION)}, ("class_or_func",), _check_sampler),
        "batch_sampler": maybe(part(BATCH_SAMPLER_DICT, _KWARGS, _BOTH, base=Sampler, supplied=1, values=_BATCHES)),
        "collate_fn": maybe(one_of(COLLATE_FUNC_DICT)),
        "dataset_wrapper": maybe(part(DATASET_WRAPPER_DICT, _ARGS_KWARGS, supplied=1), None, {}),
        "requires_supp": FLAG,
        "kwargs": _SECTION,
        "cache_output": maybe(never("is not read any more; remove it")),  # torchdistill's samples have it, empty
    },
    ("sampler", "kwargs"),
    _check_loader,
)

_MODULE = part(ChainMap(ADAPTATION_MODULE_DICT, MODULE_DICT), _KWARGS, _BOTH)
_REDESIGN = {"sequential": maybe(_MODULES), "frozen_modules": _MODULES, "adaptations": maybe(each(_MODULE))}
_PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FullyShardedDataParallel2")
_WRAPPER = maybe(one_of(_PARALLEL))
_WRAPPER_SECTION = section({"key": _WRAPPER, "kwargs": maybe(_SECTION)})


def _wrapper(report: Report, path: str, given: Any) -> None:
    (_WRAPPER_SECTION if isinstance(given, Mapping) else _WRAPPER)(report, path, given)


def _role(supplied: str) -> Kind:
    """``teacher``, ``student`` or ``model`` of a stage."""
    names = (supplied, "device", "device_ids", "distributed")
    wrappers = AUXILIARY_MODEL_WRAPPER_DICT
    auxiliary = {"key": maybe(one_of(wrappers)), "kwargs": maybe(_SECTION), **_REDESIGN}
    keys = {
        "forward_proc": one_of(processes.FORWARD_PROC_FUNC_DICT),
        "requires_grad": FLAG,
        "src_ckpt": _FILE,
        "dst_ckpt": _FILE,
        **_REDESIGN,
        "wrapper": _wrapper,
        "forward_hook": section({"input": _HOOKED, "output": _HOOKED}),
        "auxiliary_model_wrapper": part(wrappers, auxiliary, needs=(), then=_check_redesign, names=names),
    }
    return section(keys, (), _check_role)


_ROLES = {"teacher": _role("teacher_model"), "student": _role("student_model"), "model": _role("student_model")}

_MAX_GRAD_NORM = value("a number above 0, or null for no bound", lambda x: is_number(x) and 0 < x < math.inf)


def _optimizer(*, has_teacher: bool) -> Kind:
    """Of a stage. For settings of single modules, each of torchdistill's two boxes reads a key of its own."""
    name, more = ("module_wise_configs", {"is_teacher": FLAG}) if has_teacher else ("module_wise_kwargs", {})
    module = {"module": _TEXT, "kwargs": maybe(section(_RATES, has_others=True)), **more}
    keys = {
        "kwargs": _SECTION,
        "max_grad_norm": maybe(_MAX_GRAD_NORM),
        "grad_accum_step": count(),
        "filters_params": FLAG,
        name: maybe(each(section(module, ("module",)), list)),
    }
    return part(OPTIM_DICT, keys, _BOTH, _try_optimizer, base=Optimizer, supplied=1, values=_RATES)


_STEPPED = {**_KWARGS, "scheduling_step": count(0)}
_SCHEDULER = part(SCHEDULER_DICT, _STEPPED, _BOTH, base=LRScheduler, supplied=1, values=_SCHEDULE_VALUES)

_LOSSES = ChainMap(losses.MIDDLE_LEVEL_LOSS_DICT, losses.LOSS_DICT, losses.LOW_LEVEL_LOSS_DICT)
_HOOK = {"is_from_teacher": FLAG, "module_path": _TEXT, "io": one_of(("input", "output"))}
_WRAPPED = {"input": section(_HOOK, _HOOK), "target": section({"uses_label": FLAG, **_HOOK})}
_LOSS_WRAPPER = part(losses.LOSS_WRAPPER_DICT, _ARGS_KWARGS, supplied=1, values=_WRAPPED, read=_WRAPPED)
_SUB_TERM = section(
    {
        "criterion": part(_LOSSES, _KWARGS, _BOTH, base=nn.Module, values=_TEMPERATURES),
        "criterion_wrapper": maybe(_LOSS_WRAPPER, None, {}),
        "weight": number(),
    },
    ("criterion", "weight"),
    _check_sub_term,
)
_CRITERION = part(
    losses.HIGH_LEVEL_LOSS_DICT,
    {**_ARGS_KWARGS, "func2extract_model_loss": maybe(one_of(losses.FUNC2EXTRACT_MODEL_OUTPUT_DICT))},
    then=_try_criterion,
    values={
        **_TEMPERATURES,
        "sub_terms": maybe(each(_SUB_TERM)),
        "model_term": maybe(section({"weight": maybe(number())})),
    },
    read=(),
)


def _train(stages: Sequence[str], *, has_teacher: bool) -> Kind:
    """One training, or stages that follow each other: then hardly anything is read of ``train`` itself."""
    roles, article = (("teacher", "student"), "a") if has_teacher else (("model",), "no")
    unread = never(f"is not read where there is {article} models.teacher_model; write {' and '.join(roles)}")
    first = {
        "num_epochs": count(),
        "train_data_loader": _LOADER,
        "val_data_loader": _LOADER,
        **{role: kind if role in roles else unread for role, kind in _ROLES.items()},
        "optimizer": _optimizer(has_teacher=has_teacher),
        "scheduler": maybe(_SCHEDULER, None, {}),
        "criterion": _CRITERION,
        "pre_epoch_process": one_of(processes.PRE_EPOCH_PROC_FUNC_DICT),
        "pre_forward_process": one_of(processes.PRE_FORWARD_PROC_FUNC_DICT),
        "post_forward_process": one_of(processes.POST_FORWARD_PROC_FUNC_DICT),
        "post_epoch_process": one_of(processes.POST_EPOCH_PROC_FUNC_DICT),
    }
    needs = ("num_epochs", *roles, "criterion")
    needs_first = (*needs, "train_data_loader", "optimizer")
    for_all = {"log_freq": count(), "val_freq": count(), "keep": one_of(("last", "best")), "patience": maybe(count())}
    if not stages:
        return section({**for_all, **first, "stage1": _ANY}, needs_first, _check_only_stage)
    later = {**first, "optimizer": maybe(first["optimizer"], {})}  # loaders and optimizer may be kept from before
    without_gaps = [f"stage{number}" for number in range(1, len(stages) + 1)]
    keys = {
        **for_all,
        **dict.fromkeys(first, never(f"is not read where there are stages; put it into {', '.join(stages)}")),
        **dict.fromkeys(roles, section({"dst_ckpt": _FILE})),
        **dict.fromkeys(without_gaps, never("missing; stages count from 1 without gaps")),
        **dict.fromkeys(stages, section(later, needs, _try_schedule)),
        stages[0]: section(first, needs_first, _try_schedule),
    }
    return section(keys, without_gaps, _check_choice)


def _check_only_stage(report: Report, path: str, train: Mapping[Any, Any]) -> None:
    _try_schedule(report, path, train)
    _check_choice(report, path, train)


_DEVICES = section(
    {
        "default": maybe(_DEVICE),
        "teacher": maybe(_TEACHERS_DEVICE),
        "precision": maybe(one_of(("no", "bf16", "fp16")), None, False),  # YAML reads a bare no as false
        "teacher_dtype": maybe(one_of(tuple(DTYPES))),
        "channels_last": FLAG,
        "compile": maybe(one_of(("student", "teacher", "both"))),
    }
)
_CACHE = section({"views": count(), "folder": _FILE, "seed": count(0)}, ("views",))
_CHECKPOINT = section({"every_steps": maybe(count()), "every_minutes": maybe(number(0)), "keep": count()})
_NO_CACHE = never("there is no models.teacher_model whose answers could be kept; remove it")


def configuration(stages: Sequence[str], *, has_teacher: bool) -> Kind:
    """The whole table, for a ``train`` with these keys of stages, in order, or without stages."""
    student, teacher = _model("new", "extended", "centres"), maybe(_model("new", "extended"))
    models = {"teacher_model": teacher, "student_model": student, "model": student}
    keys = {
        "dependencies": _ANY,
        "models": section(models, then=_check_models),
        "datasets": section({}, has_others=True, then=_check_datasets),
        "train": _train(stages, has_teacher=has_teacher),
        "test": section({"test_data_loader": _LOADER, "log_freq": count()}, ("test_data_loader",)),
        "device": maybe(_DEVICES),
        "teacher_cache": maybe(_CACHE if has_teacher else _NO_CACHE),
        "checkpoint": maybe(_CHECKPOINT),
        "tracker": maybe(section({"engine": maybe(one_of(TRACKERS)), "kwargs": maybe(_SECTION)})),
    }
    return section(keys, ("models", "datasets", "train"), _check_start)
