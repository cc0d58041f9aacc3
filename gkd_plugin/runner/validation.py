"""Static validation of a config: everything that can be known before anything is built, all of it in one error."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gkd_plugin.errors import ConfigError, nearest
from gkd_plugin.runner import schema
from gkd_plugin.runner.yaml_nodes import Tagged, resolve_target, summary

__all__ = ["check_call", "problems", "validate"]

_TEXT_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_WORD = {True: "true", False: "false", None: "nothing"}


def validate(plain: Mapping[str, Any], *, produced: Collection[str] = (), needs_checkpoints: bool = True) -> None:
    """Checks a config that :func:`~gkd_plugin.runner.yaml_nodes.to_plain` gave; imports its dependencies.

    Args:
        plain: the config; nothing in it is changed.
        produced: paths of checkpoints that do not exist yet but will when this config runs.
        needs_checkpoints: whether a ``src_ckpt`` that does not exist is a problem.

    Raises:
        ConfigError: one line per problem: key path, what was given, what is allowed.
    """
    found = problems(plain, produced=produced, needs_checkpoints=needs_checkpoints)
    if found:
        raise ConfigError("\n".join(found))


def problems(plain: Mapping[str, Any], *, produced: Collection[str] = (), needs_checkpoints: bool = True) -> list[str]:
    """What :func:`validate` would complain about, one line each."""
    report = _Report(produced, needs_checkpoints=needs_checkpoints)
    import gkd_plugin  # noqa: F401  # registers its parts

    _dependencies(report, plain.get("dependencies"))
    _known(report, "", plain, schema.TOP)
    _models(report, plain)
    _datasets(report, plain)
    _train(report, plain)
    _test(report, plain)
    _device(report, plain)
    _tracker(report, plain)
    _tagged(report, "", plain, set())
    _text_numbers(report, "train", plain.get("train"))
    return report.lines


class _Report:
    """Collects the problems; a line is kept once."""

    def __init__(self, produced: Collection[str], *, needs_checkpoints: bool) -> None:
        self.needs_checkpoints = needs_checkpoints
        self.lines: list[str] = []
        self.produced = {_absolute(path) for path in produced}

    def add(self, path: str, message: str) -> None:
        line = f"{path}: {message}" if path else message
        if line not in self.lines:
            self.lines.append(line)

    def will_exist(self, checkpoint: str) -> bool:
        """Whether the checkpoint is a file, an address, or written by an earlier config."""
        address = checkpoint.startswith(("http://", "https://"))
        return address or Path(checkpoint).is_file() or _absolute(checkpoint) in self.produced

    def ok_since(self, mark: int) -> bool:
        """Whether nothing was added since ``mark = len(report.lines)``."""
        return len(self.lines) == mark


# --- building blocks -------------------------------------------------------------------------------------------------


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _at(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _given(value: object) -> str:
    if isinstance(value, Tagged):
        return value.tag
    if isinstance(value, Mapping):
        return "a section"
    return _WORD[value] if value is None or isinstance(value, bool) else repr(value)


def _known(report: _Report, path: str, section: Mapping[Any, Any], allowed: Collection[str]) -> None:
    """Refuses keys that nobody reads."""
    for key in section:
        if key not in allowed and not schema.is_private(key):
            if key == "cache_output" and section[key] is None:
                continue  # torchdistill's own sample configs still carry the empty key
            report.add(_at(path, key), f"unknown key; {nearest(key, allowed)}")


def _section(
    report: _Report, parent: str, holder: Mapping[Any, Any], key: str, allowed: Collection[str] | None = None
) -> Mapping[Any, Any] | None:
    """The sub-section, after its keys were checked; ``None`` where it is absent, tagged or wrong (then reported)."""
    path = _at(parent, key)
    if key not in holder or isinstance(holder[key], Tagged):
        return None
    value = holder[key]
    if not isinstance(value, Mapping):
        expected = f"a section with {', '.join(sorted(allowed))}" if allowed else "a section (key: value)"
        report.add(path, f"{_given(value)} given; must be {expected}")
        return None
    if allowed is not None:
        _known(report, path, value, allowed)
    return value


def _required(
    report: _Report, parent: str, holder: Mapping[Any, Any], key: str, allowed: Collection[str] | None = None
) -> Mapping[Any, Any] | None:
    """As :func:`_section`, for one that must be there."""
    if key not in holder:
        report.add(_at(parent, key), "missing; must be a section")
    return _section(report, parent, holder, key, allowed)


def _count(report: _Report, path: str, value: object, *, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        report.add(path, f"{_given(value)} given; must be a whole number, {least} or more")


def _names(report: _Report, path: str, value: object, example: str = "['layer4', 'fc']") -> None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        report.add(path, f"{_given(value)} given; must be a list of module paths, e.g. {example}, or []")


def _flag(report: _Report, path: str, section: Mapping[Any, Any], key: str) -> None:
    if key in section and not isinstance(section[key], bool):
        report.add(_at(path, key), f"{_given(section[key])} given; must be true or false")


def _key(
    report: _Report, path: str, value: object, registry: Mapping[str, Any], base: type | None = None
) -> Callable[..., Any] | None:
    """What a registry holds under ``value``; ``None`` where that is nothing (which is reported)."""
    if isinstance(value, str) and value in registry:
        part: Callable[..., Any] = registry[value]
        return part
    given = f"{value!r} is not registered" if isinstance(value, str) else f"{_given(value)} given, must be a name"
    report.add(path, f"{given}; {nearest(value, schema.usable(registry, base))}")
    return None


def _registered(
    report: _Report,
    path: str,
    section: Mapping[Any, Any],
    registry: Mapping[str, Any],
    *,
    base: type | None = None,
    supplied: int = 0,
    names: Collection[str] = (),
) -> None:
    """Checks ``key`` and the call with ``args`` and ``kwargs`` of a section."""
    part = _key(report, _at(path, "key"), section.get("key"), registry, base)
    args, kwargs = section.get("args") or [], section.get("kwargs") or {}
    if part is not None and isinstance(args, list) and isinstance(kwargs, Mapping):
        _call(report, _at(path, "kwargs"), part, args, kwargs, supplied=supplied, names=names)


def check_call(
    path: str,
    function: Callable[..., Any],
    args: Collection[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    supplied: int = 0,
    names: Collection[str] = (),
) -> list[str]:
    """Whether a call fits a signature: unknown, doubled and missing arguments, one line each.

    Args:
        path: key path of the keyword arguments.
        function: what will be called; one without a signature passes.
        args: positional arguments from the config.
        kwargs: keyword arguments from the config.
        supplied: number of positional arguments that torchdistill puts first.
        names: keyword arguments that torchdistill adds.

    Example:
        >>> check_call('optimizer.kwargs', lambda params, lr, momentum=0.0: None, kwargs={'mometum': 1}, supplied=1)
        ["optimizer.kwargs.mometum: unknown argument; did you mean 'momentum'? (allowed: 'lr', 'momentum')", \
"optimizer.kwargs: argument 'lr' is missing"]
    """
    given = kwargs or {}
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    filled = {p.name for p in positional[: supplied + len(args)]} | set(names)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_names = [p.name for p in by_name if p.name not in filled]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    lines = []
    for name in given:
        if name in filled:
            lines.append(f"{_at(path, name)}: given already, by torchdistill or by position; remove it")
        elif name not in open_names and not anything:
            lines.append(f"{_at(path, name)}: unknown argument; {nearest(name, open_names)}")
    if supplied + len(args) > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        lines.append(f"{path}: {len(args)} positional arguments given, at most {len(positional) - supplied} fit")
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in needed if p.name not in filled and p.name not in given]
    return lines + [f"{path}: argument {name!r} is missing" for name in missing]


def _call(
    report: _Report, path: str, function: Callable[..., Any], args: Collection[Any], kwargs: Any, **more: Any
) -> None:
    if not isinstance(kwargs, Mapping):
        if not isinstance(kwargs, Tagged):
            report.add(path, f"{_given(kwargs)} given; must be a section (key: value)")
        return
    for line in check_call(path, function, args, kwargs, **more):
        report.add("", line)


# --- dependencies, models, datasets ----------------------------------------------------------------------------------


def _dependencies(report: _Report, dependencies: object) -> None:
    from torchdistill.common.main_util import import_dependencies

    listed = dependencies if isinstance(dependencies, list) else [dependencies]
    for index, dependency in enumerate(listed if dependencies is not None else []):
        try:
            import_dependencies([dependency])
        except Exception as error:  # noqa: PERF203  # an imported module may raise anything
            name = dependency.get("name") if isinstance(dependency, Mapping) else dependency
            report.add(_at("dependencies", index), f"{name!r} cannot be imported: {summary(error)}")


def _has_teacher(plain: Mapping[str, Any]) -> bool:
    models = plain.get("models")
    return isinstance(models, Mapping) and models.get("teacher_model") is not None


def _models(report: _Report, plain: Mapping[str, Any]) -> None:
    models = _required(report, "", plain, "models", schema.MODELS)
    if models is None:
        return
    if "student_model" not in models and "model" not in models:
        report.add("models.student_model", "missing; name the model to train")
    for name in sorted(schema.MODELS & models.keys()):
        if name == "teacher_model" and models[name] is None:
            continue
        entry = _section(report, "models", models, name, schema.MODEL)
        if entry is not None:
            _model(report, _at("models", name), entry)


def _model(report: _Report, path: str, entry: Mapping[Any, Any]) -> None:
    _checkpoint(report, path, entry)
    for flag in ("quantized", "sync_bn"):
        _flag(report, path, entry, flag)
    kwargs = _required(report, path, entry, "kwargs")
    if entry.get("repo_or_dir") is not None:
        return
    part = _model_function(report, _at(path, "key"), entry.get("key"), quantized=entry.get("quantized") is True)
    if part is None or kwargs is None:
        return
    _call(report, _at(path, "kwargs"), part, (), kwargs)
    if entry["key"] == "timm_model":
        _timm_name(report, _at(path, "kwargs.model_name"), kwargs.get("model_name"))


def _model_function(report: _Report, path: str, key: object, *, quantized: bool) -> Callable[..., Any] | None:
    """What torchdistill would call: torchvision's function of that name, otherwise the registered one."""
    from torchdistill.models.registry import MODEL_DICT
    from torchvision import models

    module = models.quantization if quantized else models
    listed = [name.removeprefix("quantized_") for name in models.list_models(module=module)]
    official = {name: getattr(module, name) for name in listed}
    held = vars(module).get(key) if isinstance(key, str) else None
    if held is not None and not callable(held):
        report.add(path, f"{key!r} is a module of torchvision, not a model; {nearest(key, official)}")
        return None
    if held is not None:
        function: Callable[..., Any] = held
        return function
    return _key(report, path, key, {**official, **MODEL_DICT})


def _timm_name(report: _Report, path: str, name: object) -> None:
    import timm
    from timm.models import get_arch_name, is_model, parse_model_name

    if not isinstance(name, str) or parse_model_name(name)[0] or is_model(name):
        return
    report.add(path, f"timm has no model {name!r}; {nearest(get_arch_name(name), timm.list_models())}")


def _checkpoint(report: _Report, parent: str, section: Mapping[Any, Any]) -> None:
    """``src_ckpt`` must exist (torchdistill would go on with random weights); ``dst_ckpt`` must be a path."""
    for key in ("src_ckpt", "dst_ckpt"):
        value, path = section.get(key), _at(parent, key)
        if value is None or isinstance(value, Tagged):
            continue
        if not isinstance(value, str) or not value:
            report.add(path, f"{_given(value)} given; must be the path of a file")
        elif key == "src_ckpt" and report.needs_checkpoints and not report.will_exist(value):
            report.add(path, f"no such file: {value}; train it first, or leave src_ckpt empty")


def _datasets(report: _Report, plain: Mapping[str, Any]) -> None:
    datasets = _required(report, "", plain, "datasets")
    if datasets is not None and not any(not schema.is_private(key) for key in datasets):
        report.add("datasets", "is empty; name at least one dataset")
    for key in (key for key, value in (datasets or {}).items() if value is None and not schema.is_private(key)):
        report.add(_at("datasets", key), "nothing given; must be a dataset, e.g. !import_call {key: …}")


# --- training --------------------------------------------------------------------------------------------------------


def _train(report: _Report, plain: Mapping[str, Any]) -> None:
    train = _required(report, "", plain, "train")
    if train is None:
        return
    if "log_freq" in train:
        _count(report, "train.log_freq", train["log_freq"])
    roles = ("teacher", "student") if _has_teacher(plain) else ("model",)
    numbers = sorted(int(match[1]) for key in train if (match := schema.STAGE_NAME.fullmatch(str(key))))
    if not numbers:
        _stage(report, "train", train, plain, roles, first=True, extra={"log_freq", "stage1"})
        return
    _stage_names(report, train, numbers, roles)
    for number in numbers:
        name = f"stage{number}"
        stage = _section(report, "train", train, name)
        if stage is not None:
            _stage(report, _at("train", name), stage, plain, roles, first=number == numbers[0])


def _stage_names(report: _Report, train: Mapping[Any, Any], numbers: list[int], roles: tuple[str, ...]) -> None:
    """With stages, torchdistill reads nothing else of ``train`` than a checkpoint path for each model."""
    stages = {f"stage{number}" for number in numbers}
    for key in train:
        if key in schema.STAGE:
            report.add(
                _at("train", key), f"is not read where there are stages; put it into {', '.join(sorted(stages))}"
            )
    _known(report, "train", train, stages | schema.STAGE | {"log_freq", *roles})
    for role in roles:
        _section(report, "train", train, role, schema.STAGE_ROLE)
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if missing:
        given = ", ".join(f"stage{number}" for number in numbers)
        report.add("train", f"stage{missing[0]} is missing; stages count from 1 without gaps, given: {given}")


def _stage(
    report: _Report,
    path: str,
    stage: Mapping[Any, Any],
    plain: Mapping[str, Any],
    roles: tuple[str, ...],
    *,
    first: bool,
    extra: Collection[str] = (),
) -> None:
    """One stage; later stages may keep the data loaders and the optimizer of the one before."""
    _stage_keys(report, path, stage, roles, {*schema.STAGE, *roles, *extra})
    if "num_epochs" in stage:
        _count(report, _at(path, "num_epochs"), stage["num_epochs"])
    else:
        report.add(_at(path, "num_epochs"), "missing; must be a whole number, 1 or more")
    for key in ("train_data_loader", "val_data_loader"):
        needed = first and key == "train_data_loader"
        loader = (_required if needed else _section)(report, path, stage, key, schema.LOADER)
        if loader is not None:
            _loader(report, _at(path, key), loader, plain)
    for role in roles:
        section = _required(report, path, stage, role, schema.ROLE)
        if section is not None:
            _role(report, _at(path, role), section, "teacher_model" if role == "teacher" else "student_model")
    _optimizer(report, path, stage, first=first, teacher=len(roles) == 2)
    _scheduler(report, path, stage)
    _criterion(report, path, stage)
    for process in schema.PROCESSES:
        if process in stage:
            _key(report, _at(path, process), stage[process], schema.process_registry(process))


def _stage_keys(
    report: _Report, path: str, stage: Mapping[Any, Any], roles: tuple[str, ...], allowed: Collection[str]
) -> None:
    for key in ("teacher", "student", "model"):
        if key in stage and key not in roles:
            why = "no models.teacher_model" if roles == ("model",) else "a models.teacher_model"
            report.add(_at(path, key), f"is not read where there is {why}; write {' and '.join(roles)}")
    _known(report, path, stage, {*allowed, *(key for key in ("teacher", "student", "model") if key in stage)})


def _role(report: _Report, path: str, section: Mapping[Any, Any], supplied: str) -> None:
    """``teacher``, ``student`` or ``model`` of a stage."""
    from torchdistill.core.interfaces.registry import FORWARD_PROC_FUNC_DICT
    from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT

    if "forward_proc" not in section:
        report.add(_at(path, "forward_proc"), "missing; write forward_proc: 'forward_batch_only'")
    else:
        _key(report, _at(path, "forward_proc"), section["forward_proc"], FORWARD_PROC_FUNC_DICT)
    _flag(report, path, section, "requires_grad")
    _checkpoint(report, path, section)
    _redesign(report, path, section)
    _module_wrapper(report, _at(path, "wrapper"), section.get("wrapper"))
    hooks = _section(report, path, section, "forward_hook", schema.FORWARD_HOOK)
    for key, paths in (hooks or {}).items():
        if key in schema.FORWARD_HOOK:
            _names(report, _at(path, f"forward_hook.{key}"), paths, "['embedding']")
    auxiliary = _section(report, path, section, "auxiliary_model_wrapper", schema.AUXILIARY_WRAPPER)
    if auxiliary is not None and auxiliary.get("key") is not None:
        where = _at(path, "auxiliary_model_wrapper")
        _redesign(report, where, auxiliary)
        names = (supplied, "device", "device_ids", "distributed")
        _registered(report, where, auxiliary, AUXILIARY_MODEL_WRAPPER_DICT, names=names)


def _redesign(report: _Report, path: str, section: Mapping[Any, Any]) -> None:
    from torchdistill.models.registry import ADAPTATION_MODULE_DICT, MODULE_DICT

    if "frozen_modules" in section:
        _names(report, _at(path, "frozen_modules"), section["frozen_modules"])
    sequential, adaptations = section.get("sequential") or [], section.get("adaptations") or {}
    _names(report, _at(path, "sequential"), sequential)
    if not isinstance(adaptations, Mapping):
        report.add(_at(path, "adaptations"), f"{_given(adaptations)} given; must be a section")
        return
    for name in adaptations:
        entry = _section(report, _at(path, "adaptations"), adaptations, name, schema.ADAPTATION)
        if entry is not None:
            _registered(report, _at(path, f"adaptations.{name}"), entry, {**MODULE_DICT, **ADAPTATION_MODULE_DICT})
    for step in sequential if isinstance(sequential, list) else []:
        if isinstance(step, str) and step.startswith("+") and step[1:] not in adaptations:
            report.add(_at(path, "sequential"), f"{step!r} is not in adaptations; {nearest(step[1:], adaptations)}")


def _module_wrapper(report: _Report, path: str, wrapper: object) -> None:
    key = wrapper.get("key") if isinstance(wrapper, Mapping) else wrapper
    if isinstance(wrapper, Mapping):
        _known(report, path, wrapper, schema.KEY_KWARGS)
    if key is not None and key not in schema.MODULE_WRAPPERS:
        report.add(path, f"{_given(key)} given; {nearest(key, schema.MODULE_WRAPPERS)}")


def _loader(report: _Report, path: str, loader: Mapping[Any, Any], plain: Mapping[str, Any]) -> None:
    from torch.utils.data import DataLoader, Sampler
    from torchdistill.datasets.registry import BATCH_SAMPLER_DICT, COLLATE_FUNC_DICT, DATASET_WRAPPER_DICT

    datasets, dataset_id = plain.get("datasets"), loader.get("dataset_id")
    if isinstance(datasets, Mapping) and dataset_id not in datasets:
        given = "missing" if dataset_id is None else f"{_given(dataset_id)} is not in datasets"
        report.add(_at(path, "dataset_id"), f"{given}; {nearest(dataset_id, datasets)}")
    _sampler(report, path, loader)
    _flag(report, path, loader, "requires_supp")
    kwargs = _required(report, path, loader, "kwargs")
    if kwargs is not None:
        _call(report, _at(path, "kwargs"), DataLoader, (), kwargs, supplied=1, names=("sampler", "collate_fn"))
        if kwargs.get("shuffle"):
            report.add(_at(path, "kwargs.shuffle"), "excludes a sampler, and torchdistill always gives one; remove it")
    if loader.get("batch_sampler") is not None:
        _batch_sampler(report, path, loader, BATCH_SAMPLER_DICT, Sampler)
    if loader.get("collate_fn") is not None:
        _key(report, _at(path, "collate_fn"), loader["collate_fn"], COLLATE_FUNC_DICT)
    if loader.get("dataset_wrapper"):
        wrapper = _section(report, path, loader, "dataset_wrapper", schema.KEY_ARGS_KWARGS)
        if wrapper is not None:
            _registered(report, _at(path, "dataset_wrapper"), wrapper, DATASET_WRAPPER_DICT, supplied=1)


def _batch_sampler(
    report: _Report, path: str, loader: Mapping[Any, Any], registry: Mapping[str, Any], base: type
) -> None:
    section = _section(report, path, loader, "batch_sampler", schema.KEY_KWARGS)
    if section is None:
        return
    where = _at(path, "batch_sampler")
    _required(report, where, section, "kwargs")
    _registered(report, where, section, registry, base=base, supplied=1)
    kwargs = loader.get("kwargs")
    given = kwargs.keys() if isinstance(kwargs, Mapping) else set()
    for key in sorted(schema.DATALOADER_KEYS & given):
        report.add(_at(path, f"kwargs.{key}"), "cannot be given beside a batch_sampler; remove it")


def _sampler(report: _Report, path: str, loader: Mapping[Any, Any]) -> None:
    example = "write class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}"
    where = _at(path, "sampler")
    if "sampler" not in loader:
        report.add(f"{where}.class_or_func", f"missing; {example}")
        return
    sampler = _section(report, path, loader, "sampler", schema.SAMPLER)
    if sampler is None:
        return
    target = sampler.get("class_or_func")
    if not isinstance(target, Tagged):
        report.add(f"{where}.class_or_func", f"{_given(target)} given; {example}")
        return
    if target.tag == "!import_get" and (function := _resolved(target)) is not None:
        kwargs = sampler.get("kwargs")
        _call(report, f"{where}.kwargs", function, (), {} if kwargs is None else kwargs, supplied=1)


def _optimizer(report: _Report, parent: str, stage: Mapping[Any, Any], *, first: bool, teacher: bool) -> None:
    from torch.optim import Optimizer
    from torchdistill.optim.registry import OPTIM_DICT

    module_wise = "module_wise_configs" if teacher else "module_wise_kwargs"  # each box reads its own
    optimizer = (_required if first else _section)(report, parent, stage, "optimizer", {*schema.OPTIMIZER, module_wise})
    if not optimizer:  # an empty section keeps the optimizer of the stage before
        if first and optimizer is not None:
            report.add(_at(parent, "optimizer"), "is empty; give key and kwargs")
        return
    path = _at(parent, "optimizer")
    kwargs = _required(report, path, optimizer, "kwargs")
    _registered(report, path, optimizer, OPTIM_DICT, base=Optimizer, supplied=1)
    lr = (kwargs or {}).get("lr", 0.0)
    if isinstance(lr, bool) or not isinstance(lr, (int, float, str, Tagged)):
        report.add(f"{path}.kwargs.lr", f"{_given(lr)} given; must be a number")
    if "grad_accum_step" in optimizer:
        _count(report, f"{path}.grad_accum_step", optimizer["grad_accum_step"])
    _flag(report, path, optimizer, "filters_params")
    for index, entry in enumerate(optimizer.get(module_wise) or []):
        _module_wise(report, f"{path}.{module_wise}.{index}", entry, teacher=teacher)


def _module_wise(report: _Report, path: str, entry: object, *, teacher: bool) -> None:
    if not isinstance(entry, Mapping):
        report.add(path, f"{_given(entry)} given; must be a section with module and kwargs")
        return
    _known(report, path, entry, {"module", "kwargs", *(["is_teacher"] if teacher else [])})
    if not isinstance(entry.get("module"), str):
        report.add(_at(path, "module"), f"{_given(entry.get('module'))} given; must be a module path")


def _scheduler(report: _Report, parent: str, stage: Mapping[Any, Any]) -> None:
    from torch.optim.lr_scheduler import LRScheduler
    from torchdistill.optim.registry import SCHEDULER_DICT

    if not stage.get("scheduler"):
        return
    scheduler = _section(report, parent, stage, "scheduler", schema.SCHEDULER)
    if scheduler is None:
        return
    path = _at(parent, "scheduler")
    _required(report, path, scheduler, "kwargs")
    _registered(report, path, scheduler, SCHEDULER_DICT, base=LRScheduler, supplied=1)
    if "scheduling_step" in scheduler:
        _count(report, f"{path}.scheduling_step", scheduler["scheduling_step"], least=0)


# --- criterion -------------------------------------------------------------------------------------------------------


def _criterion(report: _Report, parent: str, stage: Mapping[Any, Any]) -> None:
    from torchdistill.losses.registry import FUNC2EXTRACT_MODEL_OUTPUT_DICT, HIGH_LEVEL_LOSS_DICT

    mark, path = len(report.lines), _at(parent, "criterion")
    criterion = _required(report, parent, stage, "criterion", schema.CRITERION)
    if criterion is None:
        return
    _key(report, _at(path, "key"), criterion.get("key"), HIGH_LEVEL_LOSS_DICT)
    if criterion.get("func2extract_model_loss") is not None:
        function = criterion["func2extract_model_loss"]
        _key(report, _at(path, "func2extract_model_loss"), function, FUNC2EXTRACT_MODEL_OUTPUT_DICT)
    kwargs = criterion.get("kwargs")
    sub_terms = kwargs.get("sub_terms") if isinstance(kwargs, Mapping) else None
    for name in sub_terms if isinstance(sub_terms, Mapping) else []:
        term = _section(report, f"{path}.kwargs.sub_terms", sub_terms or {}, name, schema.SUB_TERM)
        if term is not None:
            _sub_term(report, f"{path}.kwargs.sub_terms.{name}", term)
    if report.ok_since(mark) and not _holds_tag(criterion):
        _try_criterion(report, path, criterion)


def _sub_term(report: _Report, path: str, term: Mapping[Any, Any]) -> None:
    from torch import nn
    from torchdistill.losses import registry

    low = {**registry.LOW_LEVEL_LOSS_DICT, **registry.LOSS_DICT}
    middle = registry.MIDDLE_LEVEL_LOSS_DICT
    criterion = _required(report, path, term, "criterion", schema.KEY_KWARGS)
    if criterion is not None:
        _required(report, _at(path, "criterion"), criterion, "kwargs")
        _registered(report, _at(path, "criterion"), criterion, {**low, **middle}, base=nn.Module)
    if isinstance(term.get("weight"), bool) or not isinstance(term.get("weight"), (int, float, Tagged)):
        report.add(_at(path, "weight"), f"{_given(term.get('weight'))} given; must be a number")
    where = _at(path, "criterion_wrapper")
    if term.get("criterion_wrapper"):
        wrapper = _section(report, path, term, "criterion_wrapper", schema.KEY_ARGS_KWARGS)
        if wrapper is not None:
            _registered(report, where, wrapper, registry.LOSS_WRAPPER_DICT, supplied=1)
    elif criterion is not None and criterion.get("key") in low.keys() - middle.keys():
        wrappers = nearest("", registry.LOSS_WRAPPER_DICT)
        report.add(where, f"missing; {criterion['key']!r} needs one to pick its inputs ({wrappers})")


def _try_criterion(report: _Report, path: str, criterion: Mapping[Any, Any]) -> None:
    """A loss checks its own arguments: build one and see."""
    import torch
    from torchdistill.losses.registry import get_high_level_loss

    try:
        with torch.random.fork_rng(devices=[]):
            get_high_level_loss(copy.deepcopy(criterion))
    except Exception as error:  # whatever a loss raises here it would raise again in training
        for line in summary(error).splitlines():
            report.add(path, line)


# --- test, device, tracker -------------------------------------------------------------------------------------------


def _test(report: _Report, plain: Mapping[str, Any]) -> None:
    test = _section(report, "", plain, "test", schema.TEST)
    if test is None:
        return
    if "log_freq" in test:
        _count(report, "test.log_freq", test["log_freq"])
    loader = _required(report, "test", test, "test_data_loader", schema.LOADER)
    if loader is not None:
        _loader(report, "test.test_data_loader", loader, plain)


def _device(report: _Report, plain: Mapping[str, Any]) -> None:
    """The form of the section; whether such a device exists is found out where it is used."""
    if plain.get("device") is None:
        return
    device = _section(report, "", plain, "device", schema.DEVICE) or {}
    for key in ("default", "teacher"):
        value = device.get(key)
        if value is not None and not (isinstance(value, str) and _DEVICE.fullmatch(value)):
            report.add(f"device.{key}", f"{_given(value)} given; allowed: auto, cpu, cuda, cuda:<number>, mps")
    precision = device.get("precision", "no")
    if precision not in ("no", "bf16", "fp16", False, None):  # YAML reads a bare no as false
        report.add("device.precision", f"{_given(precision)} given; {nearest(precision, ('no', 'bf16', 'fp16'))}")


def _tracker(report: _Report, plain: Mapping[str, Any]) -> None:
    if plain.get("tracker") is None:
        return
    tracker = _section(report, "", plain, "tracker", schema.TRACKER) or {}
    engine = tracker.get("engine")
    if engine not in (None, "trackio", "wandb"):
        report.add("tracker.engine", f"{_given(engine)} given; {nearest(engine, ('trackio', 'wandb'))}")


# --- tags and numbers anywhere ---------------------------------------------------------------------------------------


def _items(value: object) -> Iterator[tuple[object, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _holds_tag(value: object) -> bool:
    return isinstance(value, Tagged) or any(_holds_tag(item) for _, item in _items(value))


def _resolved(tagged: Tagged) -> Callable[..., Any] | None:
    """What a tag names; ``None`` where that fails (which :func:`_tagged` reports)."""
    try:
        target = resolve_target(tagged)
    except ConfigError:
        return None
    return target if callable(target) else None


def _tagged(report: _Report, path: str, value: object, seen: set[int]) -> None:
    """Checks everything that construction would import and call, once each."""
    if id(value) in seen:
        return
    if isinstance(value, (Tagged, Mapping, list)):
        seen.add(id(value))
    if isinstance(value, Tagged):
        _tag(report, path, value)
        value = value.value
    for key, item in _items(value):
        _tagged(report, _at(path, key), item, seen)


def _tag(report: _Report, path: str, tagged: Tagged) -> None:
    entry, allowed = tagged.value, schema.TAG_KEYS.get(tagged.tag)
    if allowed is None:
        return
    try:
        target = resolve_target(tagged)
    except ConfigError as error:
        report.add(path, str(error))
        target = None
    if not isinstance(entry, Mapping):
        return
    _known(report, path, entry, allowed)
    init = entry.get("init")
    if init is None:
        init = {}
    if not isinstance(init, Mapping):
        if not isinstance(init, Tagged):
            report.add(_at(path, "init"), f"{_given(init)} given; must be a section with args, kwargs")
        return
    _known(report, _at(path, "init"), init, ("args", "kwargs"))
    _init(report, _at(path, "init"), init, target if tagged.tag == "!import_call" else None)


def _init(report: _Report, path: str, init: Mapping[Any, Any], target: Any) -> None:
    args, kwargs = init.get("args", []), init.get("kwargs", {})
    if not isinstance(args, (list, Tagged)):
        report.add(_at(path, "args"), f"{_given(args)} given; must be a list")
    elif not isinstance(kwargs, (Mapping, Tagged)):
        report.add(_at(path, "kwargs"), f"{_given(kwargs)} given; must be a section (key: value)")
    elif callable(target) and isinstance(args, list):
        _call(report, _at(path, "kwargs"), target, args, kwargs)


def _text_numbers(report: _Report, path: str, value: object) -> None:
    """``1e-3`` is text in YAML 1.1."""
    if isinstance(value, str) and _TEXT_NUMBER.fullmatch(value):
        report.add(path, f"{value!r} is text to YAML, not a number; write {float(value)!r} as e.g. 1.0e-3")
    inner = value.value if isinstance(value, Tagged) else value
    for key, item in _items(inner):
        _text_numbers(report, _at(path, key), item)
