"""``refilled``: the pre-epoch process of both stages."""

from __future__ import annotations

from typing import Any

from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
from torchdistill.core.interfaces.registry import PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func

from gkd_plugin.box.registry import register
from gkd_plugin.teacher.centres import fit_class_centres
from gkd_plugin.teacher.teacher import RefilledTeacher

__all__ = ["refilled_pre_epoch_process"]


@register(PRE_EPOCH_PROC_FUNC_DICT, register_pre_epoch_proc_func, "refilled")
def refilled_pre_epoch_process(self: Any, epoch: int | None = None, **kwargs: Any) -> None:
    """torchdistill's default, then: teacher in eval mode; class centres ready where the stage reads them.

    The centres are computed once, before the first epoch of the first stage whose ``forward_hook`` records the
    teacher's ``local_classifier``.

    Args:
        self: the ``DistillationBox``.
        epoch: epoch number, for distributed samplers.
        kwargs: passed on.

    Raises:
        ConfigError: a class has no training sample.
    """
    default_pre_epoch_process_with_teacher(self, epoch=epoch, **kwargs)
    teacher = self.teacher_model
    teacher.eval()
    if not isinstance(teacher, RefilledTeacher) or "local_classifier" not in self.teacher_io_dict:
        return
    if not teacher.local_classifier.is_ready:
        fit_class_centres(teacher, self.train_data_loader)
