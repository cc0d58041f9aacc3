"""The stages of a config, seen once for everybody: their order, kind, loaders, models and criterion.

Works on a valid tree and on what was built from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

WEIGHTS = ("weights", "checkpoint_path")  # keywords of torchvision's and timm's models that name trained weights
STAGE_NAME = re.compile(r"stage([1-9][0-9]*)")


@dataclass(frozen=True)
class Role:
    """What a stage says about one of its models, at a key path: ``train.stage1.teacher``."""

    path: str
    section: Mapping[str, Any]

    @property
    def wrapper(self) -> str | None:
        """Key of the auxiliary wrapper, e.g. ``refilled_teacher``; ``None`` without one."""
        return (self.section.get("auxiliary_model_wrapper") or {}).get("key")

    @property
    def wrapper_kwargs(self) -> Mapping[str, Any]:
        """Keywords of the auxiliary wrapper."""
        return (self.section.get("auxiliary_model_wrapper") or {}).get("kwargs") or {}

    def hooks(self, io: str = "output") -> list[str]:
        """Module paths whose ``'input'`` or ``'output'`` torchdistill records."""
        return list((self.section.get("forward_hook") or {}).get(io) or [])


@dataclass(frozen=True)
class Stage:
    """One stage of the training: ``stage1`` at ``train.stage1``, or ``train`` itself where it is the only one."""

    name: str
    path: str
    section: Mapping[str, Any]  # with the loaders that it keeps from the stage before
    is_last: bool = True

    @property
    def epochs(self) -> int:
        """Its number of epochs."""
        return int(self.section["num_epochs"])

    @property
    def criterion(self) -> Mapping[str, Any]:
        """Its criterion's section."""
        return self.section.get("criterion") or {}

    @property
    def kind(self) -> str | None:
        """Of criterion ``refilled``: ``'embedding'``, ``'classifier'`` or ``'joint'``; ``None`` with another one."""
        return (self.criterion.get("kwargs") or {}).get("stage") if self.criterion.get("key") == "refilled" else None

    @property
    def trains_classifier(self) -> bool:
        """Whether its loss depends on the student's logits: that of stage ``embedding`` by itself does not."""
        return self.kind != "embedding" or bool((self.criterion.get("kwargs") or {}).get("sub_terms"))

    @property
    def student_embedding(self) -> str | None:
        """Module path of the student's embedding, as far as its criterion or a projection shows it."""
        if self.kind in ("embedding", "joint"):
            return str(self.criterion["kwargs"].get("student_embedding", "embedding"))
        if self.student.wrapper == "projected_student":
            return str(self.student.wrapper_kwargs.get("embedding", "embedding"))
        return None

    @property
    def teacher(self) -> Role | None:
        """What it says about the teacher; ``None`` where it trains without one."""
        section = self.section.get("teacher")
        return None if section is None else Role(f"{self.path}.teacher", section)

    @property
    def student(self) -> Role:
        """What it says about the model that it trains: ``student``, or ``model`` without a teacher."""
        name = "student" if "student" in self.section else "model"
        return Role(f"{self.path}.{name}", self.section.get(name) or {})

    @property
    def loader(self) -> Mapping[str, Any]:
        """The section of its training data."""
        return cast("Mapping[str, Any]", self.section["train_data_loader"])

    @property
    def val_loader(self) -> Mapping[str, Any] | None:
        """The section of its validation data, if any."""
        return self.section.get("val_data_loader") or None

    @property
    def batch_sampler(self) -> Mapping[str, Any]:
        """Keywords of the training data's batch sampler."""
        return (self.loader.get("batch_sampler") or {}).get("kwargs") or {}


def stages_of(config: Mapping[str, Any]) -> list[Stage]:
    """The stages in order; one without a loader of its own keeps that of the stage before, as torchdistill has it."""
    train: Mapping[str, Any] = config["train"]
    names, stages = stage_names(train), []
    loaders: dict[str, Any] = {}
    for name in names:
        loaders |= {key: train[name][key] for key in ("train_data_loader", "val_data_loader") if train[name].get(key)}
        stages.append(Stage(name, f"train.{name}", {**train[name], **loaders}, is_last=name == names[-1]))
    return stages or [Stage("train", "train", train)]


def stage_names(train: Any) -> list[str]:
    """The keys of the stages in the section ``train``, in order."""
    names = [key for key in train if STAGE_NAME.fullmatch(str(key))] if isinstance(train, Mapping) else []
    return sorted(names, key=lambda name: int(name.removeprefix("stage")))


def student_entry(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(key path, entry) of the model to train: ``models.student_model``, or ``models.model`` without a teacher."""
    name = "student_model" if "student_model" in config["models"] else "model"
    return f"models.{name}", config["models"][name]


def names_weights(entry: Mapping[str, Any]) -> bool:
    """Whether the entry of a model names trained weights."""
    kwargs = entry.get("kwargs") or {}
    return bool(entry.get("src_ckpt")) or any(kwargs.get(key) for key in ("pretrained", *WEIGHTS))


def student_embedding(config: Mapping[str, Any]) -> str | None:
    """Module path of the student's embedding; ``None`` where the config does not show it."""
    if student_entry(config)[1].get("key") == "timm_model":
        return "embedding"
    return next((stage.student_embedding for stage in stages_of(config) if stage.student_embedding), None)


def has_teacher(config: Mapping[str, Any]) -> bool:
    """Whether the config names a teacher model."""
    models = config.get("models")
    return isinstance(models, Mapping) and models.get("teacher_model") is not None
