"""Numbers that a method file leaves open, because data and models decide them: ``{student_width}`` and its kin."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.config.stages import Stage, student_entry
from gkd_plugin.config.tree import build, dump
from gkd_plugin.data import labels_of
from gkd_plugin.data.transforms import checked_size
from gkd_plugin.errors import ConfigError, first_line, told_at
from gkd_plugin.runner.checks import first_images
from gkd_plugin.runner.models import TEACHER, build_model
from gkd_plugin.teacher.input import own_input

EMBEDDING = "{student_embedding}"  # stands for the module path of the student's embedding


@dataclass(frozen=True)
class _Part:
    """A part of a configuration; equal to another that is written alike, so that each is built and measured once."""

    path: str
    text: str
    tree: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, path: str, tree: Any) -> "_Part":
        return cls(path, dump(tree), tree)


@dataclass(frozen=True)
class Measured:
    """What placeholders are filled in from: a stage, and the student's embedding (``None`` where no output is it)."""

    tree: Mapping[str, Any]
    stage: Stage
    embedding: str | None = None

    @property
    def student_embedding(self) -> str:
        """``embedding``, or a ConfigError where there is none."""
        if self.embedding is None:
            needed = "name a module whose output it is (auxiliary_model_wrapper.kwargs.embedding)"
            raise ConfigError(f"the teacher's embedding is an input (embedding_io), which no student has; {needed}")
        return self.embedding

    @property
    def data(self) -> _Part:
        """The stage's training set."""
        name = self.stage.loader["dataset_id"]
        return _Part.of(f"datasets.{name}", self.tree["datasets"][name])


def filled(value: Any, of: Measured) -> Any:
    """A section of a method file with all placeholders filled in."""
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
    return _built(Measured(tree, stage).data)


@functools.lru_cache(maxsize=4)
def _built(data: _Part) -> Any:
    return build(data.tree, data.path)


def _teacher_width(of: Measured) -> int:
    given = of.stage.teacher.wrapper_kwargs if of.stage.teacher else {}
    kwargs = {"embedding": "embedding", "embedding_io": "output", "preprocessing": "auto", **given}
    where = (kwargs[key] for key in ("embedding", "embedding_io", "preprocessing"))
    entry = _Part.of(TEACHER, of.tree["models"]["teacher_model"])
    return _width(entry, of.data, *where, side=checked_size(kwargs.get("input_size")))


@functools.lru_cache(maxsize=64)
def _width(
    entry: _Part, data: _Part, path: str, io: str = "output", preprocessing: str = "data", *, side: Any = None
) -> int:
    """The width of an embedding: timm's models know it, others get an image; no weights are made or loaded."""
    where = entry.path
    built = {key: value for key, value in build(entry.tree, where).items() if not key.endswith("_ckpt")}
    kwargs, without_weights = built.get("kwargs") or {}, {"pretrained": False, "weights": None}
    built["kwargs"] = {**kwargs, **{key: value for key, value in without_weights.items() if key in kwargs}}
    with torch.device("meta"):  # where only shapes are computed
        model = build_model(where, built).eval()
    if path == "embedding" and hasattr(model, "head_hidden_size"):
        return int(model.head_hidden_size)  # type: ignore[arg-type]
    check_module_path(model, path, f"{where}: embedding")
    channels, *size = first_images(data.path, _built(data)).shape[1:]
    images = torch.empty(2, channels, *(side or own_input(model, preprocessing).size or size), device="meta")
    capture = Capture.of(model, path, io)
    try:
        with torch.device("meta"), torch.no_grad():
            model(images)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{where}: the width of {path!r} cannot be measured: {first_line(error)}") from error
    with told_at(f"{where}: "):
        return capture.take(where.removeprefix("models.").removesuffix("_model"), path).shape[1]


def _num_negatives(of: Measured) -> int:
    """As many as every sample has, so that none is drawn twice; at most 16384, as CRD was published."""
    dataset = _built(of.data)
    lacks = " and no ".join(name for name in ("classes", "targets") if not hasattr(dataset, name))
    if lacks:
        which = f"the training set ({type(dataset).__name__}) has no {lacks}, which CRDDatasetWrapper reads"
        raise ConfigError(f"{which}; gkd_plugin.data.with_evaluation_view and class_subset give it both")
    counts = Counter(labels_of(dataset))
    if len(counts) < 2:
        raise ConfigError(f"all {counts.total()} training samples are of one class; CRD needs negatives of another")
    return min(16384, counts.total() - max(counts.values()))


def _queue_size(of: Measured) -> int:
    """By the number of training images, as lightly-train has it (8192 above the limits known)."""
    samples = len(labels_of(_built(of.data)))
    limits = {50: 16, 2000: 512, 4000: 1024, 10000: 2048}
    return next((size for limit, size in limits.items() if samples <= limit), 8192)


PLACEHOLDERS: Mapping[str, Callable[[Measured], int]] = {
    "{student_width}": lambda of: _width(_Part.of(*student_entry(of.tree)), of.data, of.student_embedding),
    "{teacher_width}": _teacher_width,
    "{num_samples}": lambda of: len(labels_of(_built(of.data))),
    "{num_negatives}": _num_negatives,
    "{queue_size}": _queue_size,
}
