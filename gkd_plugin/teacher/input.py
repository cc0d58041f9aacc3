"""The teacher's own view of the images: from the student's normalisation and size to the teacher's."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from gkd_plugin.data import ImageInput
from gkd_plugin.data.transforms import checked_size, resized
from gkd_plugin.errors import ConfigError, listed, one_of

logger = logging.getLogger(__name__)

_UNKNOWN = ImageInput()
_TOLD: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # wrappers come and go with the stages


def is_first_time(teacher: nn.Module, what: str) -> bool:
    """Whether the log has yet to say something of this teacher, whatever wraps it; from now on it has."""
    told = _TOLD.setdefault(teacher, set())
    is_first = what not in told
    if logging.root.manager.disable < logging.INFO:  # the rehearsal says nothing
        told.add(what)
    return is_first


def own_input(teacher: nn.Module, preprocessing: str) -> ImageInput:
    """What the teacher was trained on: ``'pretrained'`` reads timm's ``pretrained_cfg``, ``'data'`` leaves all open.

    ``'auto'`` reads timm's unless a checkpoint of this package says what the weights were trained with (the model's
    ``image_input``). Raises ConfigError where it is none of these.
    """
    one_of("preprocessing", preprocessing, ("auto", "pretrained", "data"))
    known: ImageInput | None = getattr(teacher, "image_input", None)
    if preprocessing == "auto" and known is not None:
        return known
    cfg: Any = getattr(teacher, "pretrained_cfg", None)
    if preprocessing == "data" or not isinstance(cfg, dict) or cfg.get("input_size") is None:
        return _UNKNOWN
    channels, height, width = cfg["input_size"]
    mean, std = cfg.get("mean"), cfg.get("std")
    if mean is None or std is None or {len(mean), len(std)} - {1, channels}:
        return ImageInput(size=(height, width))  # timm describes the RGB weights of a model built for other channels
    return ImageInput(tuple(mean), tuple(std), (height, width))


def given_input(mean: Any, std: Any, size: Any = None, *, known: ImageInput = _UNKNOWN, prefix: str = "") -> ImageInput:
    """What the wrapper's keywords (named in messages with ``prefix``) say; ``known`` where they say nothing."""
    return ImageInput(
        mean=listed(f"{prefix}mean", mean, float, "a number for each channel") or known.mean,
        std=listed(f"{prefix}std", std, float, "a number above 0 for each channel", above_zero=True) or known.std,
        size=checked_size(size) or known.size,
    )


class TeacherInput(nn.Module):
    r"""Images as the student gets them → as the teacher knows them.

    x ↦ x · σ_data / σ + (μ_data − μ) / σ, channel by channel, where both normalisations are known and differ; then
    bicubic with antialiasing to the teacher's size, where that is known and differs (the whole image, no crop).
    Computed in float32. Where nothing differs, the same tensor comes back.

    Raises ConfigError where ``data``, the student's input, and the teacher's are of different numbers of channels.
    """

    affine: Tensor | None  # [2, C, 1, 1]: scale and shift

    def __init__(self, data: ImageInput, teacher: ImageInput) -> None:
        super().__init__()
        self.data, self.teacher = data, teacher
        self.register_buffer("affine", _affine(data, teacher), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, h, w]``; raises ConfigError where the number of channels is not the teacher's."""
        size = self._new_size(x)
        if size is None:
            return self._normalised(x)
        if size[0] * size[1] > x.shape[-2] * x.shape[-1]:  # normalises the smaller of the two
            return resized(self._normalised(x), size)
        return self._normalised(resized(x, size))

    def log(self, x: Tensor, teacher: nn.Module, preprocessing: str) -> None:
        """Says once for each teacher what is done to its images; ``x`` are the student's."""
        if not is_first_time(teacher, "images"):
            return
        steps, size = [], self._new_size(x)
        if size is not None:
            before, after = (f"{height} × {width}" for height, width in (x.shape[-2:], size))
            steps.append(f"resized from {before} to {after} pixels (bicubic, antialias)")
        if self.affine is not None:
            own = f"mean {_short(self.teacher.mean)} and std {_short(self.teacher.std)}"
            students = f"{_short(self.data.mean)} and {_short(self.data.std)}"
            steps.append(f"normalised with {own} instead of the student's {students}")
        if steps:
            is_guess = preprocessing == "auto" and hasattr(teacher, "has_weights_of_unknown_input")
            guess = " (the weights do not say what images they were trained with, so timm's pretrained_cfg is taken)"
            done = f"the teacher's images are {' and '.join(steps)}"
            hint = "auxiliary_model_wrapper.kwargs.preprocessing: 'data' leaves them as they are"
            logger.log(logging.WARNING if is_guess else logging.INFO, "%s; %s%s", done, hint, guess if is_guess else "")
        if self.teacher == _UNKNOWN and preprocessing != "data":
            logger.info("the teacher does not say what images it was trained with: it gets those of the student")
        if self.teacher.mean is not None and self.data.mean is None:
            found = "the training set does not show how its images are normalised, so the teacher gets them as they are"
            logger.warning("%s; auxiliary_model_wrapper.kwargs.data_mean and data_std tell it", found)

    def _new_size(self, x: Tensor) -> tuple[int, int] | None:
        size = self.teacher.size
        return None if size is None or x.ndim != 4 or tuple(x.shape[-2:]) == size else size

    def _normalised(self, x: Tensor) -> Tensor:
        if self.affine is None:
            return x
        scale, shift = self.affine.unbind()
        if len(scale) not in (1, x.shape[1]):
            raise ConfigError(f"the teacher takes images of {len(scale)} channels, the data has {x.shape[1]}")
        return x.float() * scale + shift


def _affine(data: ImageInput, teacher: ImageInput) -> Tensor | None:
    """Scale and shift; ``None`` where a normalisation is not known, or both are the same."""
    if data.mean is None or data.std is None or teacher.mean is None or teacher.std is None:
        return None
    try:
        mean_d, std_d, mean, std = np.broadcast_arrays(data.mean, data.std, teacher.mean, teacher.std)
    except ValueError as error:
        theirs, ours = (f"{len(values)} channels (mean {_short(values)})" for values in (teacher.mean, data.mean))
        raise ConfigError(f"the teacher takes images of {theirs}, the data has {ours}") from error
    scale, shift = std_d / std, (mean_d - mean) / std
    if np.allclose(scale, 1, rtol=0, atol=1e-5) and np.allclose(shift, 0, rtol=0, atol=1e-6):
        return None
    return torch.tensor([scale.tolist(), shift.tolist()], dtype=torch.float32)[:, :, None, None]


def _short(values: Sequence[float] | None) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values or ()) + ")"
