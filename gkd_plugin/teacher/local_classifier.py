"""The hook path ``local_classifier``: a readout of the teacher, fitted to a stream of training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gkd_plugin.functional import ClassCentreAccumulator
from gkd_plugin.teacher.class_map import ClassMap
from gkd_plugin.teacher.readouts import READOUTS, Answers, Seen

__all__ = ["LocalClassifier"]

_ALWAYS_SAVED = ("centres", "weight", "bias", "teacher_labels", "shared_factors")


class LocalClassifier(nn.Module):
    """Logits over the student's classes from what the teacher says, by the readout that ``kind`` names.

    Its buffers are empty until it is fitted: ``centres`` ``[C, D_t]``, and what the readout keeps.

    Attributes:
        kind: a key of :data:`READOUTS`.
    """

    centres: Tensor

    def __init__(self, kind: str = "centres") -> None:
        super().__init__()
        self.kind = kind
        for name in _ALWAYS_SAVED:
            self.register_buffer(name, torch.empty(0))

    @property
    def is_ready(self) -> bool:
        """Whether it has been fitted."""
        return self.centres.numel() > 0

    @property
    def wants_views(self) -> bool:
        """Whether the readout is fitted to images as the student sees them, beside the class centres."""
        return READOUTS[self.kind].wants_views

    def forward(self, logits: Tensor) -> Tensor:
        """The logits ``[B, C]`` as they are: where hooks find them."""
        return logits

    def logits(self, answers: Answers) -> Tensor:
        """``[B, C]`` float32."""
        with torch.autocast(answers.embedding.device.type, enabled=False):
            return READOUTS[self.kind].logits(self._tensors(), answers)

    def adopt(self, other: LocalClassifier, device: torch.device) -> None:
        """Takes over what another one was fitted to."""
        self._keep(other._tensors(), device)

    def use_centres(self, centres: Tensor) -> None:
        """Measures against class centres ``[C, D_t]``."""
        self._keep({"centres": centres, **READOUTS["centres"].fit(centres, None)}, centres.device)

    def fit(
        self,
        batches: Iterable[tuple[Answers, Tensor]],
        num_classes: int | None,
        views: Iterable[tuple[Answers, Tensor, Tensor]] | None = None,
        class_map: ClassMap | None = None,
    ) -> None:
        """Fits it to the training set.

        Args:
            batches: of answers and labels ``[B]``, for the class centres.
            num_classes: C; ``None`` for 1 + the largest label.
            views: of answers, labels and the numbers ``[B]`` of the samples, to images as the student sees them, for a
                readout that wants these; read after the batches; ``None`` for the batches themselves.
            class_map: which classes the teacher has itself.

        Raises:
            ValueError: a class has no sample, or a label is out of range.
        """
        class_map = class_map or ClassMap()
        accumulator, seen, count = ClassCentreAccumulator(num_classes), list[list[Tensor]](), 0
        for answers, labels in batches:
            accumulator.update(answers.embedding, labels)
            if self.wants_views and views is None:
                seen.append(_seen(answers, labels, torch.arange(count, count + len(labels)), class_map))
            count += len(labels)
        centres = accumulator.result()
        if self.wants_views:
            seen += [_seen(*view, class_map) for view in views or ()]
        fitted = READOUTS[self.kind].fit(centres, _joined(seen, class_map) if seen else None)
        empty = dict.fromkeys(self._tensors(), torch.empty(0))  # of another fit
        self._keep({**empty, "centres": centres, **fitted}, centres.device)

    def _tensors(self) -> dict[str, Tensor]:
        """What was fitted, by name; class centres may be there under two names."""
        return dict(self.named_buffers(remove_duplicate=False))

    def _keep(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        for name, value in tensors.items():
            self.register_buffer(name, value.to(device))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        self._keep({name: torch.empty_like(value) for name, value in saved.items()}, self.centres.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _seen(answers: Answers, labels: Tensor, samples: Tensor, class_map: ClassMap) -> list[Tensor]:
    """Rows, logits, labels and samples on the CPU; without the logits, which may be many, where no class is shared."""
    rows = answers.rows
    logits = rows[:, :0] if answers.logits is None or not class_map.shared else answers.logits.detach().float()
    return [rows.cpu(), logits.cpu(), labels.cpu().long(), samples.cpu()]


def _joined(seen: list[list[Tensor]], class_map: ClassMap) -> Seen:
    rows, logits, labels, samples = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return Seen(rows, logits if logits.shape[1] else None, labels, samples, class_map.shared)
