"""The hook path ``local_classifier``: logits over the student's classes from what the teacher says, by a readout.

The paper's is here. Every other module of this folder is imported: a subclass of :class:`Readout` is a new readout.
"""

import importlib
import logging
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gkd_plugin.box.hooks import Capture, check_module_path
from gkd_plugin.errors import ConfigError
from gkd_plugin.functional import ClassCentreAccumulator
from gkd_plugin.teacher.class_map import ClassMap

logger = logging.getLogger(__name__)

READOUTS: dict[str, "Readout"] = {}  # by name; every subclass of Readout enters itself

_ALWAYS_SAVED = ("centres", "weight", "bias", "teacher_labels", "shared_factors")


class Answers(NamedTuple):
    """What a teacher says of a batch, ``[B, …]`` each in float32; ``None`` where it has none."""

    embedding: Tensor  # [B, D_t]
    local_classifier: Tensor | None = None  # [B, C], logits over the student's classes; None: the wrapper computes them
    logits: Tensor | None = None  # [B, C_t], of the teacher's own classifier
    features: Tensor | None = None  # [B, F], see LocalFeatures

    @property
    def rows(self) -> Tensor:
        """``[B, D_t + F]`` float32: embedding and features side by side."""
        parts = [self.embedding] if self.features is None else [self.embedding, self.features]
        return torch.cat([part.detach().float() for part in parts], dim=1)


class Seen(NamedTuple):
    """Training images as the student sees them, for a readout to be fitted to; on the CPU in float32."""

    rows: Tensor  # [N, D_t + F], see Answers.rows
    logits: Tensor | None  # [N, C_t], the teacher's own; None where it has none, or shares no class with the student
    labels: Tensor  # [N], the student's
    samples: Tensor  # [N] integers, equal for differently augmented images of one sample
    teacher_labels: Sequence[int | None] | None  # see ClassMap.shared
    class_prior: str  # see RefilledTeacher
    counts: Tensor  # [C], of all training samples of each class; those seen may be fewer


class Readout:
    """A way to read logits over the student's C classes off the teacher; it keeps no state of its own."""

    name: ClassVar[str]  # what the wrapper's keyword local_classifier calls it
    wants_views: ClassVar[bool] = False  # whether fit gets images as the student sees them, beside the class centres

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        READOUTS[cls.name] = cls()

    def fit(self, centres: Tensor, seen: Seen | None) -> dict[str, Tensor]:
        """Whatever tensors :meth:`logits` needs, by name; the wrapper keeps, moves and saves them.

        The class centres ``[C, D_t]`` are on the teacher's device; there are no images unless ``wants_views``. Raises
        ValueError where the images or the class map cannot be used.
        """
        raise NotImplementedError

    def logits(self, fitted: Mapping[str, Tensor], answers: Answers) -> Tensor:
        """``[B, C]`` float32; here rows · weightᵀ + bias, where ``weight`` may leave out the last columns of the rows.

        ``fitted`` are the tensors that :meth:`fit` returned, and ``centres``, on the device of the answers.
        """
        weight = fitted["weight"]
        return functional.linear(answers.rows[:, : weight.shape[1]], weight, fitted["bias"])


class Centres(Readout):
    """z_k = φ_T(x) · c_k: the embedding against the class centres (TPAMI section 4.2)."""

    name = "centres"

    def fit(self, centres: Tensor, seen: Seen | None) -> dict[str, Tensor]:
        """The centres as weight, without a bias."""
        return {"weight": centres, "bias": centres.new_zeros(len(centres))}


class LocalClassifier(nn.Identity):
    """Logits over the student's classes by the readout that ``kind`` names; they pass through it, for hooks to find.

    Its buffers are empty until it is fitted: ``centres`` ``[C, D_t]``, and what the readout keeps.
    """

    centres: Tensor

    def __init__(self, kind: str = "centres", class_prior: str = "equal") -> None:
        super().__init__()
        self.kind, self.class_prior = kind, class_prior
        for name in _ALWAYS_SAVED:
            self.register_buffer(name, torch.empty(0))

    @property
    def is_ready(self) -> bool:
        """Whether it has been fitted."""
        return self.centres.numel() > 0

    @property
    def knowledge(self) -> float:
        """The share of the labels' information that it has, 1 − (cross-entropy of held-out labels) / log C, in [0, 1].

        1 where its readout does not measure it, or it is not fitted. To read it waits for the device.
        """
        measured = self.tensors().get("information", torch.empty(0))
        return float(measured) if measured.numel() else 1.0

    @property
    def fitted_by(self) -> tuple[str, str]:
        """What decides, with the data, what it is fitted to."""
        return self.kind, self.class_prior

    @property
    def wants_views(self) -> bool:
        """As :attr:`Readout.wants_views`."""
        return READOUTS[self.kind].wants_views

    def logits(self, answers: Answers) -> Tensor:
        """``[B, C]`` float32."""
        with torch.autocast(answers.embedding.device.type, enabled=False):
            return READOUTS[self.kind].logits(self.tensors(), answers)

    def fit(
        self,
        batches: Iterable[tuple[Answers, Tensor]],
        num_classes: int | None,
        views: Iterable[tuple[Answers, Tensor, Tensor]] | None = None,
        class_map: ClassMap | None = None,
    ) -> None:
        """As :meth:`RefilledTeacher.fit_centres`, with what the teacher says of the images in place of the images."""
        class_map = class_map or ClassMap()  # what is shared shows with the teacher's first logits
        accumulator, parts, count = ClassCentreAccumulator(num_classes), list[tuple[Tensor, ...]](), 0
        for answers, labels in batches:
            accumulator.update(answers.embedding, labels)
            if self.wants_views and views is None:
                parts.append(_on_cpu(answers, labels, torch.arange(count, count + len(labels)), class_map))
            count += len(labels)
        centres, seen = accumulator.result(), None
        if self.wants_views:
            parts += [_on_cpu(*view, class_map) for view in views or ()]
            rows, logits, of, samples = map(torch.cat, zip(*parts, strict=True))
            own = logits if logits.shape[1] else None
            seen = Seen(rows, own, of, samples, class_map.shared, self.class_prior, accumulator.counts.cpu())
        elif self.class_prior != "equal":
            logger.warning("class_prior: not used, this local classifier reads the class centres alone")
        fitted = READOUTS[self.kind].fit(centres, seen)
        empty = dict.fromkeys(self.tensors(), torch.empty(0))  # of another fit
        self.keep({**empty, "centres": centres, **fitted}, centres.device)

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted, by name; class centres may be there under two names."""
        return dict(self.named_buffers(remove_duplicate=False))

    def keep(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes what a readout, or another local classifier, was fitted to."""
        for name, value in tensors.items():
            self.register_buffer(name, value.to(device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        self.keep({name: torch.empty_like(value) for name, value in saved.items()}, self.centres.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _on_cpu(answers: Answers, labels: Tensor, samples: Tensor, class_map: ClassMap) -> tuple[Tensor, ...]:
    """Rows, logits, labels and samples; without the logits, which may be many, where no class is shared."""
    rows = answers.rows
    logits = rows[:, :0] if answers.logits is None or not class_map.shared else answers.logits.detach().float()
    return rows.cpu(), logits.cpu(), labels.cpu().long(), samples.cpu()


class LocalFeatures:
    r"""Outputs of a teacher's modules, each as one row a sample, side by side.

    A deep embedding drops what did not matter for the teacher's own classes. Earlier layers still have it (texture,
    colour), and it helps to tell apart classes that the teacher has never seen. Not in the paper.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str] | None) -> None:
        if isinstance(paths, str) or not all(isinstance(path, str) for path in paths or ()):
            raise ConfigError(f"local_features: must be a list of module paths, got {paths!r}")
        self.paths = tuple(paths or ())
        for path in self.paths:
            check_module_path(model, path, "local_features")
            if self.paths.count(path) > 1:
                raise ConfigError(f"local_features: {path!r} is given twice")
        self._captures = [Capture.of(model, path, "output") for path in self.paths]

    def take(self) -> Tensor | None:
        """``[B, F]`` float32 of the teacher's last forward pass; ``None`` where no module is named."""
        rows = [pooled(capture.value, path) for path, capture in zip(self.paths, self._captures, strict=True)]
        for capture in self._captures:
            capture.value = None
        return torch.cat([row.to(rows[0].device) for row in rows], dim=1) if rows else None


def pooled(output: Any, path: str) -> Tensor:
    """One float32 row a sample, ``[B, 2 C]``: mean and standard deviation over positions.

    Of a feature map ``[B, C, H, W]`` or tokens ``[B, N, C]``; ``[B, C]`` of what has no positions, ``[B, C]`` or
    ``[B, C, 1, 1]``. Raises ConfigError, with the module's path, for anything else.
    """
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        shown = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"local_features: {path!r} gave {shown}, not a tensor [B, C], [B, N, C] or [B, C, H, W]")
    rows = output.float()
    positions = rows.transpose(1, 2) if rows.ndim == 3 else rows.unsqueeze(2).flatten(2)
    if positions.shape[2] == 1:
        return positions.squeeze(2)
    deviation, mean = torch.std_mean(positions, dim=2, correction=0)
    return torch.cat([mean, deviation], dim=1)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
