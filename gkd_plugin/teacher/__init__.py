"""The teacher as an object: its invariants, its input, its readouts, class map and fitting."""

from gkd_plugin.teacher.processes import refilled_pre_epoch_process
from gkd_plugin.teacher.teacher import DTYPES, Answers, RefilledTeacher

__all__ = ["DTYPES", "Answers", "RefilledTeacher", "refilled_pre_epoch_process"]
