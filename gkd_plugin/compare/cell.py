"""A cell of the grid: the configuration of one method in one setting."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from gkd_plugin.compare.method import EMBEDDING, Method, MethodStage
from gkd_plugin.compare.schedule import scaled, stretched
from gkd_plugin.compare.setting import WEIGHTS, Setting, apply_setting, is_incremental, keep_all_samples
from gkd_plugin.compare.sizes import PLACEHOLDERS, Measured, measure
from gkd_plugin.config.config import RunConfig, checked_config
from gkd_plugin.config.yaml_nodes import CORE, as_node, entries, merged_pairs, put, remove
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.building import stage_configs

__all__ = ["base_stages", "cell_config"]

_STAGES = ("embedding", "classifier")
_REPLACED = ("forward_hook", "dataset_wrapper")
"""Sections that a method puts in place of the configuration's, instead of adding to them."""


def base_stages(root: MappingNode) -> dict[str, str]:
    """'embedding' and 'classifier' → the name of that stage in ``train``, in the order of the stages.

    Raises:
        ConfigError: the configuration does not have these two stages, or has others.
    """
    found: dict[Any, str] = {}
    others = []
    for name, stage in stage_configs(to_plain(root).get("train") or {}).items():
        criterion = stage.get("criterion") or {}
        kind = (criterion.get("kwargs") or {}).get("stage") if criterion.get("key") == "refilled" else None
        if kind in _STAGES and kind not in found:
            found[kind] = name
        else:
            others.append(name)
    missing = [f"{stage!r}" for stage in _STAGES if stage not in found]
    purpose = "compare takes a configuration of both stages and makes the other methods from it"
    if missing:
        raise ConfigError(f"train: has no stage with criterion 'refilled' and stage {' and '.join(missing)}; {purpose}")
    if others:
        raise ConfigError(f"train: has {' and '.join(others)} beside stages 'embedding' and 'classifier'; {purpose}")
    return found


def cell_config(root: MappingNode, method: Method, setting: Setting, path: Path, task: int | None = None) -> RunConfig:
    """The configuration of a cell, validated.

    A method with fewer stages than the configuration trains as long as its stages together: as many updates.

    Args:
        root: the configuration; left as it is.
        method: what to train.
        setting: the setting.
        path: where the cell's configuration will be.
        task: number of the few-shot task; ``None`` leaves it.

    Raises:
        ConfigError: the method cannot be made from this configuration, or is not valid.
    """
    own = copy.deepcopy(root)
    _name_student(own)
    if method.keeps_all_samples:  # whatever the memory, which would also change how batches are balanced
        setting = replace(setting, memory=None)
    apply_setting(own, setting, task)
    names = base_stages(own)
    train = _flat(entries(own)["train"])
    nodes = {like: _flat(entries(train)[name]) for like, name in names.items()}
    _inherit_loaders(list(nodes.values()))
    with told_at(f"method {method.name!r}: "):
        if method.keeps_all_samples and is_incremental(own):
            keep_all_samples(own)
        _set_models(own, method)
        embedding = _student_embedding(nodes["embedding"], method)
        if method.starts_untrained:
            for node in nodes.values():
                _merge(node, "student", {"src_ckpt": None})
        if method.probes_student:
            assert embedding is not None  # a probed student is not the teacher's network
            for like, name in names.items():
                _read_like_student(nodes[like], embedding)
                put(train, name, nodes[like])
            put(own, "train", train)
        if method.probe:
            return checked_config(path, own)
        stages = [_Stage(own, nodes, stage, embedding).node() for stage in method.stages]
        put(own, "train", _train(train, stages, has_teacher=method.has_teacher))
        if any("dataset_wrapper" in stage.train_data_loader for stage in method.stages):
            remove(own, "teacher_cache")  # whose views are of the data set itself; the teacher answers in every step
        return checked_config(path, own)


class _Stage:
    """A stage of a method on its way to a node."""

    def __init__(
        self, root: MappingNode, nodes: Mapping[str, MappingNode], stage: MethodStage, student_embedding: str | None
    ) -> None:
        self._stage = stage
        self._node = copy.deepcopy(nodes[stage.like])
        self._plain = to_plain(self._node)
        epochs = {like: to_plain(entries(node)["num_epochs"]) for like, node in nodes.items()}
        self._epochs = sum(epochs.values()) if stage.takes_all else epochs[stage.like]
        self._factor = self._epochs / epochs[stage.like]
        self._student_embedding = student_embedding
        self._measured = Measured(root, self._plain, student_embedding or "")

    def node(self) -> MappingNode:
        """The whole stage."""
        stage, node = self._stage, self._node
        put(node, "num_epochs", _node(self._epochs))
        scheduler = stretched(self._plain.get("scheduler"), self._factor)
        if scheduler is not None:
            put(node, "scheduler", _node(scaled(scheduler, stage.lr_factor)))
        if stage.lr_factor != 1 or stage.max_grad_norm is not None:
            put(node, "optimizer", _node(_adjusted(self._plain.get("optimizer"), stage)))
        if stage.criterion is not None:
            put(node, "criterion", _node(self._filled(stage.criterion)))
        if stage.train_data_loader:
            self._update("train_data_loader", stage.train_data_loader)
        if stage.has_teacher:
            self._update("teacher", stage.teacher)
            self._update("student", stage.student)
        else:
            remove(node, "teacher")
            remove(node, "pre_epoch_process")
            self._update("student", {"forward_hook": None, **stage.student})
            put(node, "model", entries(node)["student"])
            remove(node, "student")
        return node

    def _update(self, key: str, changes: Mapping[str, Any]) -> None:
        _merge(self._node, key, self._filled(changes))

    def _filled(self, value: Any) -> Any:
        """With ``{student_embedding}`` and numbers like ``{student_width}`` filled in."""
        if isinstance(value, Mapping):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, str):
            if value in PLACEHOLDERS:
                return measure(value, self._measured)
            return value.replace(EMBEDDING, self._embedding) if EMBEDDING in value else value
        return value

    @property
    def _embedding(self) -> str:
        if self._student_embedding is None:
            raise ConfigError(
                "the teacher's embedding is the input of a module (embedding_io), which cannot be read of a student; "
                "name a module whose output it is (auxiliary_model_wrapper.kwargs.embedding)"
            )
        return self._student_embedding


def _merge(section: MappingNode, key: str, changes: Any) -> None:
    """Puts changes into a sub-section, key by key; ``None`` takes a key away."""
    if changes is None:
        remove(section, key)
        return
    there = entries(section).get(key)
    if not isinstance(changes, Mapping) or not isinstance(there, MappingNode) or key in _REPLACED:
        put(section, key, _node(changes))
        return
    own = _flat(there)
    put(section, key, own)
    for name, value in changes.items():
        _merge(own, name, value)


def _student_embedding(stage: MappingNode, method: Method) -> str | None:
    """Module path whose output is the student's embedding; ``None`` where no output is.

    Where the student is the teacher's network, it is that of the teacher.
    """
    plain = to_plain(stage)
    if method.starts_from_teacher:
        wrapper = (plain.get("teacher") or {}).get("auxiliary_model_wrapper") or {}
        kwargs = wrapper.get("kwargs") or {}
        return str(kwargs.get("embedding", "embedding")) if kwargs.get("embedding_io") != "input" else None
    return str(plain["criterion"]["kwargs"].get("student_embedding", "embedding"))


def _adjusted(optimizer: Mapping[str, Any] | None, stage: MethodStage) -> dict[str, Any]:
    """The optimizer's section with the method's learning rate, and its bound where the section has none."""
    if not optimizer:
        raise ConfigError(
            f"optimizer: missing in the stage {stage.like!r}; what the method changes there needs one in each stage"
        )
    kwargs = dict(optimizer.get("kwargs") or {})
    if stage.lr_factor != 1:
        if "lr" not in kwargs:
            raise ConfigError("optimizer.kwargs.lr: missing; a method with an lr_factor needs a learning rate to scale")
        kwargs["lr"] *= stage.lr_factor
    adjusted = {**optimizer, "kwargs": kwargs}
    if optimizer.get("max_grad_norm") is None and stage.max_grad_norm is not None:
        adjusted["max_grad_norm"] = stage.max_grad_norm
    return adjusted


def _train(train: MappingNode, stages: list[MappingNode], *, has_teacher: bool) -> MappingNode:
    """The section ``train``: what is not a stage stays."""
    kept = [pair for pair in train.value if not pair[0].value.startswith("stage")]
    if len(stages) == 1:
        return MappingNode(f"{CORE}map", [*kept, *stages[0].value])
    if not has_teacher:
        raise ConfigError("several stages need a teacher")
    numbered = [(ScalarNode(f"{CORE}str", f"stage{number}"), stage) for number, stage in enumerate(stages, 1)]
    return MappingNode(f"{CORE}map", [*kept, *numbered])


def _read_like_student(stage: MappingNode, student_embedding: str) -> None:
    """Gives a stage a wrapper for a student in the teacher's place, which sees the images as the student does."""
    wrapper = (to_plain(stage).get("teacher") or {}).get("auxiliary_model_wrapper") or {}
    kept = {key: value for key, value in (wrapper.get("kwargs") or {}).items() if key == "num_classes"}
    kwargs = {**kept, "embedding": student_embedding, "preprocessing": "data", "class_map": None}
    _merge(stage, "teacher", {"auxiliary_model_wrapper": None, "src_ckpt": None})
    _merge(stage, "teacher", {"auxiliary_model_wrapper": {"key": "refilled_teacher", "kwargs": kwargs}})


def _name_student(root: MappingNode) -> None:
    """The model to train is ``student_model`` beside a teacher, which may also call it ``model``."""
    models = _flat(entries(root)["models"])
    if "student_model" not in entries(models) and "model" in entries(models):
        put(models, "student_model", entries(models)["model"])
        remove(models, "model")
        put(root, "models", models)


def _inherit_loaders(stages: Sequence[MappingNode]) -> None:
    """A stage without a loader of its own keeps that of the stage before, as torchdistill has it."""
    for before, stage in pairwise(stages):
        for key in ("train_data_loader", "val_data_loader"):
            if key in entries(before) and not to_plain(entries(stage).get(key, _node(None))):
                put(stage, key, entries(before)[key])


def _set_models(root: MappingNode, method: Method) -> None:
    """The student's weights go to the cell's folder alone; without a teacher it is the only model, with no cache."""
    is_extended = is_incremental(root)
    models = _flat(entries(root)["models"])
    put(root, "models", models)
    student = _flat(entries(models)["student_model"])
    if method.starts_from_teacher:
        student = _student_like_teacher(student, _flat(entries(models)["teacher_model"]), is_extended=is_extended)
    remove(student, "dst_ckpt")
    if method.starts_untrained:
        _leave_weights_out(student)
    if method.probes_student:
        probed = copy.deepcopy(student)
        if to_plain(probed).get("src_ckpt_classifier"):
            put(probed, "src_ckpt_classifier", _node("new" if to_plain(probed).get("src_ckpt") else None))
        put(models, "teacher_model", probed)
    if method.has_teacher or method.probe:
        put(models, "student_model", student)
    else:
        models.value = [(ScalarNode(f"{CORE}str", "model"), student)]
        remove(root, "teacher_cache")


def _leave_weights_out(student: MappingNode) -> None:
    """Random weights for a student that the configuration starts from trained ones."""
    kwargs = _flat(entries(student)["kwargs"])
    put(student, "kwargs", kwargs)
    for key in ("src_ckpt", "src_ckpt_classifier"):
        remove(student, key)
    plain = to_plain(kwargs)
    if plain.get("pretrained"):
        put(kwargs, "pretrained", _node(False))
    for key in WEIGHTS:
        if plain.get(key) is not None:
            raise ConfigError(f"models.student_model.kwargs.{key}: names weights that this method cannot leave out")


def _student_like_teacher(student: MappingNode, teacher: MappingNode, *, is_extended: bool) -> MappingNode:
    """The teacher's entry with the student's number of classes: its network and weights, with a new classifier."""
    num_classes = to_plain(student)["kwargs"].get("num_classes")
    if num_classes is None:
        raise ConfigError("models.student_model.kwargs.num_classes: missing; the classifier for the teacher's network")
    own = copy.deepcopy(teacher)
    kwargs = _flat(entries(own)["kwargs"])
    put(own, "kwargs", kwargs)
    put(kwargs, "num_classes", _node(num_classes))
    if to_plain(own).get("src_ckpt"):
        kind = to_plain(student).get("src_ckpt_classifier")
        put(own, "src_ckpt_classifier", _node("extended" if is_extended else "centres" if kind == "centres" else "new"))
    return own


def _flat(node: Node) -> MappingNode:
    """A copy of a section with its merge keys resolved."""
    assert isinstance(node, MappingNode)
    return MappingNode(node.tag, merged_pairs(node), node.start_mark, node.end_mark)


def _node(value: Any) -> Node:
    return as_node(value, "a method")
