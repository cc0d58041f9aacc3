"""What the log says of a teacher, each once."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from gkd_plugin.data import ImageInput
from gkd_plugin.teacher.teacher_input import TeacherInput

__all__ = ["TeacherLog"]

logger = logging.getLogger(__name__)

_TOLD: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # wrappers come and go with the stages


class TeacherLog:
    """Says what is done to a teacher's images, and where its confidence comes from; once, whatever wraps it.

    Args:
        teacher: the model inside the wrapper.
        preprocessing: see :func:`gkd_plugin.teacher.teacher_input.own_input`.
    """

    def __init__(self, teacher: nn.Module, preprocessing: str) -> None:
        self._told = _TOLD.setdefault(teacher, set())
        self._preprocessing = preprocessing
        self._is_guess = preprocessing == "auto" and hasattr(teacher, "has_weights_of_unknown_input")

    def images(self, made: TeacherInput, x: Tensor) -> None:
        """What ``made`` does to the images ``x``, as the student gets them."""
        if self._is_told("images"):
            return
        steps = made.describe(x)
        if steps:
            logger.log(
                logging.WARNING if self._is_guess else logging.INFO,
                "the teacher's images are %s; auxiliary_model_wrapper.kwargs.preprocessing: 'data' leaves them as "
                "they are%s",
                " and ".join(steps),
                " (its weights do not say what images they were trained with: timm's pretrained_cfg is taken)"
                if self._is_guess
                else "",
            )
        if made.teacher == ImageInput() and self._preprocessing != "data":
            logger.info("the teacher does not say what images it was trained with: it gets those of the student")
        if made.lacks_normalisation:
            logger.warning(
                "the training set does not show how its images are normalised, so the teacher gets them as they are; "
                "auxiliary_model_wrapper.kwargs.data_mean and data_std tell it"
            )

    def has_no_classifier(self) -> None:
        """The teacher has no classes of its own."""
        if not self._is_told("classifier"):
            logger.info("the teacher has no classifier of its own: its confidence is the local classifier's")

    def _is_told(self, what: str) -> bool:
        """Whether the log says so already; from now on it does."""
        was_told = what in self._told
        self._told.add(what)
        return was_told
