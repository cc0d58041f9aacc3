"""Numbers that a method file leaves open, because data and models decide them: ``{student_width}`` and its kin."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.config.stages import Stage, student_entry
from gkd_plugin.config.tree import build, dump
from gkd_plugin.data import labels_of
from gkd_plugin.errors import ConfigError, told_at
from gkd_plugin.runner.checks import first_images
from gkd_plugin.runner.models import TEACHER, build_model
from gkd_plugin.teacher.input import checked_size, own_input

__all__ = ["EMBEDDING", "PLACEHOLDERS", "Measured", "filled", "training_set"]

EMBEDDING = "{student_embedding}"
"""Stands for the module path of the student's embedding."""
MOST_NEGATIVES = 16384
"""As CRD was published; less where the training set has no more."""
_WITHOUT_WEIGHTS = {"pretrained": False, "weights": None}


@dataclass(frozen=True)
class Measured:
    """What placeholders are filled in from.

    Attributes:
        tree: the configuration.
        stage: the stage.
        embedding: module path whose output is the student's embedding; ``None`` where no output is.
    """

    tree: Mapping[str, Any]
    stage: Stage
    embedding: str | None

    @property
    def student_embedding(self) -> str:
        """``embedding``.

        Raises:
            ConfigError: there is none.
        """
        if self.embedding is None:
            raise ConfigError(
                "the teacher's embedding is the input of a module (embedding_io), which cannot be read of a student; "
                "name a module whose output it is (auxiliary_model_wrapper.kwargs.embedding)"
            )
        return self.embedding

    def training_set(self) -> _Part:
        """The stage's training set in the configuration, not built."""
        name = self.stage.loader["dataset_id"]
        return _Part.of(f"datasets.{name}", self.tree["datasets"][name])


def filled(value: Any, of: Measured) -> Any:
    """A section of a method file with all placeholders filled in.

    Raises:
        ConfigError: data or model cannot be built, or have no such number.
    """
    if isinstance(value, Mapping):
        return {key: filled(item, of) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, of) for item in value]
    if not isinstance(value, str):
        return value
    if value in PLACEHOLDERS:
        return PLACEHOLDERS[value](of)
    return value.replace(EMBEDDING, of.student_embedding) if EMBEDDING in value else value


def training_set(tree: Mapping[str, Any], stage: Stage) -> Any:
    """The stage's training set, built; the same one for configurations that write it alike."""
    return _built(Measured(tree, stage, None).training_set())


def _num_samples(of: Measured) -> int:
    return _data(of.training_set()).samples


def _num_negatives(of: Measured) -> int:
    """As many as every sample has, so that none is drawn twice; at most :data:`MOST_NEGATIVES`."""
    data = _data(of.training_set())
    if data.lacks:
        raise ConfigError(
            f"the training set ({data.kind}) has no {' and no '.join(data.lacks)}, where CRDDatasetWrapper finds the "
            "negatives; gkd_plugin.data.with_evaluation_view and class_subset give it both"
        )
    if data.largest_class == data.samples:
        raise ConfigError(f"all {data.samples} training samples are of one class; CRD needs negatives of another")
    return min(MOST_NEGATIVES, data.samples - data.largest_class)


def _student_width(of: Measured) -> int:
    model = _Part.of(*student_entry(of.tree))
    return _width(model, of.student_embedding, of.training_set())


def _teacher_width(of: Measured) -> int:
    kwargs = of.stage.teacher.wrapper_kwargs if of.stage.teacher else {}
    return _width(
        _Part.of(TEACHER, of.tree["models"]["teacher_model"]),
        kwargs.get("embedding", "embedding"),
        of.training_set(),
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
class _Part:
    """A part of a configuration; equal to another that is written alike, so that each is built and measured once."""

    path: str
    text: str
    tree: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, path: str, tree: Any) -> _Part:
        return cls(path, dump(tree), tree)


class _Data(NamedTuple):
    """What is asked of a training set: its class, an image's ``(C, H, W)``, labels, what CRD's wrapper would miss."""

    kind: str
    shape: tuple[int, ...]
    samples: int
    largest_class: int
    lacks: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def _built(dataset: _Part) -> Any:
    return build(dataset.tree, dataset.path)


@functools.lru_cache(maxsize=64)
def _data(part: _Part) -> _Data:
    dataset = _built(part)
    labels = labels_of(dataset)
    lacks = tuple(name for name in ("classes", "targets") if not hasattr(dataset, name))
    largest = max(Counter(labels).values(), default=0)
    return _Data(type(dataset).__name__, tuple(first_images(dataset).shape[1:]), len(labels), largest, lacks)


@functools.lru_cache(maxsize=64)
def _width(
    entry: _Part,
    path: str,
    training_set: _Part,
    *,
    io: str = "output",
    preprocessing: str = "data",
    size: tuple[int, int] | None = None,
) -> int:
    """The width of an embedding: timm's models know it, others get an image; no weights are made or loaded.

    Args:
        entry: the model's.
        path: module path of the embedding.
        training_set: only its images' shape matters.
        io: 'output' or 'input' of that module.
        preprocessing: what decides the size of the model's images, see :func:`~teacher_input.own_input`.
        size: goes before it.
    """
    model = _model_without_weights(entry)
    if path == "embedding" and hasattr(model, "head_hidden_size"):
        return int(model.head_hidden_size)  # type: ignore[arg-type]
    check_module_path(model, path, f"{entry.path}: embedding")
    shape = _data(training_set).shape
    side = size or own_input(model, preprocessing).size
    images = torch.empty(2, *(shape if side is None else (shape[0], *side)), device="meta")
    return _width_at(entry.path, model, path, io, images)


def _model_without_weights(entry: _Part) -> nn.Module:
    """On the device ``meta``, where only shapes are computed."""
    built = {key: value for key, value in build(entry.tree, entry.path).items() if not key.endswith("_ckpt")}
    kwargs = built.get("kwargs") or {}
    built["kwargs"] = {**kwargs, **{key: value for key, value in _WITHOUT_WEIGHTS.items() if key in kwargs}}
    with torch.device("meta"):
        return build_model(entry.path, built).eval()


def _width_at(where: str, model: nn.Module, path: str, io: str, images: Tensor) -> int:
    """Of what a forward pass without weights gives there."""
    capture = Capture.of(model, path, io)
    try:
        with torch.device("meta"), torch.no_grad():
            model(images)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{where}: the width of {path!r} cannot be measured: {reason}") from error
    with told_at(f"{where}: "):
        return capture.take(where.removeprefix("models.").removesuffix("_model"), path).shape[1]
