"""A cell of the grid: the configuration of one method in one setting."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_plugin.compare.method import Method, MethodStage
from gkd_plugin.compare.setting import Setting, Tree, apply_setting, is_incremental, with_memory
from gkd_plugin.compare.sizes import Measured, filled
from gkd_plugin.config.config import RunConfig, checked_config
from gkd_plugin.config.stages import WEIGHTS, Stage, stages_of, student_embedding, student_entry
from gkd_plugin.errors import ConfigError, nearest, told_at
from gkd_plugin.runner.run_folder import RunFolder

_REPLACED = ("criterion", "forward_hook", "dataset_wrapper")  # a method's go in place of the configuration's
_IN_EPOCHS = {  # key of a scheduler → its keyword that counts epochs, if any
    "refilled_cosine": None,
    "ConstantLR": None,
    "ReduceLROnPlateau": None,
    "CosineAnnealingLR": "T_max",
    "StepLR": "step_size",
    "MultiStepLR": "milestones",
    "LinearLR": "total_iters",
    "PolynomialLR": "total_iters",
    "OneCycleLR": "total_steps",
}


def base_stages(tree: Tree) -> dict[str, Stage]:
    """The stages 'embedding' and 'classifier' of a configuration; a single stage is both."""
    stages = stages_of(tree)
    kinds = ("embedding", "classifier")
    if len(stages) == 1 and stages[0].kind in ("classifier", "joint"):
        return dict.fromkeys(kinds, stages[0])
    found = {kind: stage for stage in reversed(stages) if (kind := stage.kind) in kinds}
    missing = " and ".join(repr(kind) for kind in kinds if kind not in found)
    others = " and ".join(stage.name for stage in stages if stage not in found.values())
    purpose = "compare takes a configuration of both stages, or of stage 'joint', and makes the other methods from it"
    if missing:
        raise ConfigError(f"train: has no stage with criterion 'refilled' and stage {missing}; {purpose}")
    if others:
        raise ConfigError(f"train: has {others} beside stages 'embedding' and 'classifier'; {purpose}")
    return {kind: found[kind] for kind in kinds}


def cell_config(
    tree: Tree,
    method: Method,
    setting: Setting,
    path: Path,
    task: int | None = None,
    *,
    trained: tuple[Method, Tree] | None = None,
) -> RunConfig:
    """The configuration of a cell, validated, for the file ``path``; the tree is left as it is.

    A method with fewer stages than the configuration trains as long as its stages together: as many updates. A
    ``trained`` teacher, of a method (:func:`trained_teacher`), takes the place of the configuration's.
    """
    tree = copy.deepcopy(tree)
    if method.memory is None:  # whatever the memory, which would also change how batches are balanced
        setting = replace(setting, memory=None)
        for subset in with_memory(tree):
            subset["memory"] = None
    apply_setting(tree, setting, task)
    stages = base_stages(tree)
    with told_at(f"method {method.name!r}: "):
        # a stage may load weights, too
        without = {role: {"src_ckpt": None} for role in ("student", "teacher") if getattr(method, role) == "untrained"}
        stages = {kind: replace(stage, section=_merged(stage.section, without)) for kind, stage in stages.items()}
        embedding = stages["embedding"].student_embedding or student_embedding(tree)
        read_at = embedding or "embedding"
        if trained is not None:
            source, tree["models"]["teacher_model"] = trained
            at = None if source.student == "teacher" else read_at
            stages = {kind: replace(stage, section=_read_like_student(stage, at)) for kind, stage in stages.items()}
        if method.student == "teacher":  # where the teacher's embedding is, if it is an output
            teacher = stages["embedding"].teacher
            kwargs = teacher.wrapper_kwargs if teacher else {}
            embedding = None if kwargs.get("embedding_io") == "input" else str(kwargs.get("embedding", "embedding"))
        tree["models"] = _models(tree, method)
        own = {stage.name: stage for stage in stages.values()}
        if method.of == "student":
            sections = {name: _read_like_student(stage, read_at) for name, stage in own.items()}
        elif method.probe:
            sections = {name: dict(stage.section) for name, stage in own.items()}
        else:
            wanted = method.stages[: len(own)] if method.is_as_configured else method.stages
            made = [_section(tree, stages, stage, embedding) for stage in wanted]
            sections = {f"stage{n}": section for n, section in enumerate(made, 1)} if made[1:] else {"train": made[0]}
        kept = {key: value for key, value in tree["train"].items() if not ("train" in own or key.startswith("stage"))}
        tree["train"] = kept | sections.get("train", sections)
        is_wrapped = any("dataset_wrapper" in stage.train_data_loader for stage in method.stages)
        if is_wrapped or "teacher_model" not in tree["models"]:
            tree.pop("teacher_cache", None)  # its views are of the data set itself; the teacher answers in every step
        return checked_config(path, tree, produced=() if trained is None else (trained[1]["src_ckpt"],))


def trained_teacher(config: RunConfig, folder: Path) -> Tree:
    """The entry of a teacher that is the student of the run of ``config`` in ``folder``."""
    return {**_without_weights(student_entry(config.tree)[1]), "src_ckpt": str(RunFolder(folder).student)}


def _without_weights(entry: Tree) -> Tree:
    """The entry of a model whose weights are random."""
    kwargs = {key: value for key, value in (entry.get("kwargs") or {}).items() if key not in WEIGHTS}
    if kwargs.get("pretrained"):
        kwargs["pretrained"] = False
    loaded = dict.fromkeys(("src_ckpt", "src_ckpt_prefix", "src_ckpt_classifier"))
    return {**_merged(entry, loaded), "kwargs": kwargs}


def _models(tree: Tree, method: Method) -> Tree:
    """The student saves its weights in the cell's folder alone; without a teacher it is the only model."""
    teacher, student = tree["models"]["teacher_model"], student_entry(tree)[1]
    if method.teacher == "untrained":
        teacher = _without_weights(teacher)
    changes: Tree = {"dst_ckpt": None}
    if method.student == "teacher":
        if (num_classes := student["kwargs"].get("num_classes")) is None:
            where = "models.student_model.kwargs.num_classes"
            raise ConfigError(f"{where}: missing; the classifier for the teacher's network")
        changes["kwargs"] = {"num_classes": num_classes}
        if teacher.get("src_ckpt"):
            starts_at = "centres" if student.get("src_ckpt_classifier") == "centres" else "new"
            changes["src_ckpt_classifier"] = "extended" if is_incremental(tree) else starts_at
        student = teacher
    elif method.student == "untrained":
        student = _without_weights(student)
    student = _merged(student, changes)
    if not method.probe and all(stage.teacher is None for stage in method.stages):
        return {"model": student}
    if method.of == "student":
        teacher = student
        if student.get("src_ckpt_classifier"):
            teacher = {**student, "src_ckpt_classifier": "new" if student.get("src_ckpt") else None}
    return {"teacher_model": teacher, "student_model": student}


def _read_like_student(stage: Stage, embedding: str | None) -> Tree:
    """The stage with a wrapper for a student in the teacher's place, which sees the images as the student does.

    Without ``embedding`` it is the teacher's own network, read where the configuration says.
    """
    given = stage.teacher.wrapper_kwargs if stage.teacher else {}
    read_at = {"embedding", "embedding_io"} if embedding is None else set()
    kept = {key: value for key, value in given.items() if key in read_at | {"num_classes"}}
    named = {} if embedding is None else {"embedding": embedding}
    kwargs = {**kept, **named, "preprocessing": "data", "class_map": None}
    wrapper = {"key": "refilled_teacher", "kwargs": kwargs}
    teacher = {**_merged(stage.section["teacher"], {"src_ckpt": None}), "auxiliary_model_wrapper": wrapper}
    return {**stage.section, "teacher": teacher}


def _section(tree: Tree, stages: Mapping[str, Stage], wanted: MethodStage, embedding: str | None) -> Tree:
    """A stage of a method: that of the configuration with the method's changes."""
    base = stages[wanted.like]
    all_epochs = sum({stage.name: stage.epochs for stage in stages.values()}.values())
    epochs = all_epochs if wanted.epochs == "all" else base.epochs
    section = {**base.section, "num_epochs": epochs}
    if section.get("scheduler") is not None:
        section["scheduler"] = fitted_scheduler(section["scheduler"], epochs / base.epochs, wanted.lr_factor)
    if wanted.lr_factor != 1 or wanted.max_grad_norm is not None:
        if not section.get("optimizer"):
            raise ConfigError(f"optimizer: missing in the stage {wanted.like!r}, where the method changes it")
        section["optimizer"] = optimizer = dict(section["optimizer"])
        optimizer["kwargs"] = kwargs = dict(optimizer.get("kwargs") or {})
        if wanted.lr_factor != 1:
            if "lr" not in kwargs:
                raise ConfigError("optimizer.kwargs.lr: missing; a method with an lr_factor needs one to scale")
            kwargs["lr"] *= wanted.lr_factor
        if wanted.max_grad_norm is not None and optimizer.get("max_grad_norm") is None:
            optimizer["max_grad_norm"] = wanted.max_grad_norm
    changes = {key: getattr(wanted, key) for key in ("train_data_loader", "teacher", "student")}
    if wanted.criterion is not None:
        changes["criterion"] = wanted.criterion
    if wanted.teacher is None:
        changes |= {"pre_epoch_process": None, "student": {"forward_hook": None, **wanted.student}}
    section = _merged(section, filled(changes, Measured(tree, base, embedding)))
    if wanted.teacher is None:
        section["model"] = section.pop("student")
    return section


def fitted_scheduler(scheduler: Tree, longer: float, lr_factor: float) -> Tree:
    """The scheduler's section for ``longer`` ≥ 1 times as many epochs and ``lr_factor`` times the learning rate."""
    key, kwargs = scheduler["key"], dict(scheduler.get("kwargs") or {})
    if longer != 1 and key not in _IN_EPOCHS:
        why = "cannot be stretched to the epochs of both stages, as single-stage methods need"
        raise ConfigError(f"scheduler: {key!r} {why}; {nearest(key, _IN_EPOCHS)}")
    if longer != 1 and (argument := _IN_EPOCHS[key]):
        if argument not in kwargs:
            raise ConfigError(f"scheduler.kwargs: {key!r} has no {argument!r} to stretch")
        kwargs[argument] = _each(kwargs[argument], lambda epoch: round(epoch * longer))
    if key == "OneCycleLR" and "max_lr" in kwargs:  # its peak is a learning rate of its own
        kwargs["max_lr"] = _each(kwargs["max_lr"], lambda lr: lr * lr_factor)
    return {**scheduler, "kwargs": kwargs} if kwargs else dict(scheduler)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return [change(item) for item in value] if isinstance(value, list) else change(value)


def _merged(section: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """The section with changes put over it, key by key; ``None`` takes a key away."""
    merged = dict(section)
    for key, value in changes.items():
        there = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(there, Mapping) and key not in _REPLACED:
            merged[key] = _merged(there, value)
        else:
            merged[key] = value
    return merged
