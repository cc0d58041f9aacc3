"""Numbers that a method file leaves open, because data and models decide them: ``{student_width}`` and its kin."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from yaml.nodes import MappingNode

from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.config.yaml_construct import construct
from gkd_plugin.config.yaml_nodes import compose_value, dump, entries, merged_pairs, put, remove
from gkd_plugin.config.yaml_plain import to_plain
from gkd_plugin.data import labels_of
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.forward_check import first_images
from gkd_plugin.runner.models import build_model
from gkd_plugin.teacher.input import checked_size, own_input

__all__ = ["PLACEHOLDERS", "Measured", "measure"]

MOST_NEGATIVES = 16384
"""As CRD was published; less where the training set has no more."""


@dataclass(frozen=True)
class Measured:
    """What numbers are measured from.

    Attributes:
        root: the configuration.
        stage: the stage's section, as plain data.
        student_embedding: module path of the student's embedding.
    """

    root: MappingNode
    stage: Mapping[str, Any]
    student_embedding: str


def measure(placeholder: str, of: Measured) -> int:
    """The number that stands for a placeholder.

    Raises:
        ConfigError: data or model cannot be built, or have no such number.
    """
    return PLACEHOLDERS[placeholder](of)


def _num_samples(of: Measured) -> int:
    return _data(_training_set(of)).samples


def _num_negatives(of: Measured) -> int:
    """As many as there are for every sample, without one drawn twice; at most :data:`MOST_NEGATIVES`."""
    data = _data(_training_set(of))
    if data.lacks:
        raise ConfigError(
            f"the training set ({data.kind}) has no {' and no '.join(data.lacks)}, where CRDDatasetWrapper finds the "
            "negatives; gkd_plugin.data.with_evaluation_view and class_subset give it both"
        )
    if data.fewest_others == 0:
        raise ConfigError(f"all {data.samples} training samples are of one class; CRD needs negatives of another")
    return min(MOST_NEGATIVES, data.fewest_others)


def _student_width(of: Measured) -> int:
    return _width(_entry(of.root, "student_model"), of.student_embedding, _training_set(of))


def _teacher_width(of: Measured) -> int:
    wrapper = of.stage["teacher"].get("auxiliary_model_wrapper") or {}
    kwargs = wrapper.get("kwargs") or {}
    return _width(
        _entry(of.root, "teacher_model"),
        kwargs.get("embedding", "embedding"),
        _training_set(of),
        io=kwargs.get("embedding_io", "output"),
        preprocessing=kwargs.get("preprocessing", "auto"),
        size=checked_size(kwargs.get("input_size")),
    )


PLACEHOLDERS: Mapping[str, Callable[[Measured], int]] = {
    "{student_width}": _student_width,
    "{teacher_width}": _teacher_width,
    "{num_samples}": _num_samples,
    "{num_negatives}": _num_negatives,
}


@dataclass(frozen=True)
class _Data:
    """What is asked of a training set.

    Attributes:
        kind: name of its class.
        shape: of an image, ``(C, H, W)``.
        samples: how many.
        fewest_others: samples that are not of the largest class.
        lacks: which attributes that torchdistill reads labels from it does not have.
    """

    kind: str
    shape: tuple[int, ...]
    samples: int
    fewest_others: int
    lacks: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def _data(text: str) -> _Data:
    (dataset,) = construct(compose_value(text, "datasets"))["datasets"].values()
    labels = labels_of(dataset)
    largest = max(Counter(labels).values(), default=0)
    return _Data(
        kind=type(dataset).__name__,
        shape=tuple(first_images(dataset).shape[1:]),
        samples=len(labels),
        fewest_others=len(labels) - largest,
        lacks=tuple(name for name in ("classes", "targets") if not hasattr(dataset, name)),
    )


@functools.lru_cache(maxsize=64)
def _width(
    entry: str,
    path: str,
    training_set: str,
    *,
    io: str = "output",
    preprocessing: str = "data",
    size: tuple[int, int] | None = None,
) -> int:
    """The width of an embedding: timm's models know it, others get an image; no weights are made or loaded.

    Args:
        entry: the model's, as YAML.
        path: module path of the embedding.
        training_set: as YAML; only its images' shape matters.
        io: 'output' or 'input' of that module.
        preprocessing: what decides the size of the model's images, see :func:`~teacher_input.own_input`.
        size: goes before it.
    """
    (where, built), *_ = construct(compose_value(entry, "models")).items()
    where = f"models.{where}"
    with torch.device("meta"):
        model = build_model(where, built).eval()
    if path == "embedding" and hasattr(model, "head_hidden_size"):
        return int(model.head_hidden_size)  # type: ignore[arg-type]
    check_module_path(model, path, f"{where}: embedding")
    shape = _data(training_set).shape
    side = size or own_input(model, preprocessing).size
    images = torch.empty(2, *(shape if side is None else (shape[0], *side)), device="meta")
    return _width_of(where, model, Capture.of(model, path, io), path, images)


def _width_of(where: str, model: nn.Module, capture: Capture, path: str, images: Tensor) -> int:
    """Of what a forward pass without weights leaves in ``capture``."""
    try:
        with torch.device("meta"), torch.no_grad():
            model(images)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{where}: the width of {path!r} cannot be measured: {reason}") from error
    with told_at(f"{where}: "):
        return capture.take(where.removeprefix("models.").removesuffix("_model"), path).shape[1]


def _training_set(of: Measured) -> str:
    """The stage's training set alone, as YAML."""
    name = of.stage["train_data_loader"]["dataset_id"]
    datasets = entries(of.root)["datasets"]
    assert isinstance(datasets, MappingNode)  # validated before
    only = [(key, value) for key, value in merged_pairs(datasets) if to_plain(key) == name]
    return dump(_mapping("datasets", MappingNode(datasets.tag, only)))


def _entry(root: MappingNode, name: str) -> str:
    """A model's entry as YAML, without weights."""
    entry = copy.deepcopy(entries(entries(root)["models"])[name])
    assert isinstance(entry, MappingNode)  # validated before
    for key in ("src_ckpt", "src_ckpt_classifier", "dst_ckpt"):
        remove(entry, key)
    kwargs = {key: None for key in (to_plain(entry).get("kwargs") or {}) if key in ("pretrained", "weights")}
    if kwargs:
        section = entries(entry)["kwargs"]
        assert isinstance(section, MappingNode)
        section.value = merged_pairs(section)
        for key in kwargs:
            put(section, key, compose_value("False" if key == "pretrained" else "null", key))
    return dump(_mapping(name, entry))


def _mapping(key: str, value: MappingNode) -> MappingNode:
    node = compose_value(f"{{{key}: null}}", key)
    assert isinstance(node, MappingNode)
    put(node, key, value)
    return node
