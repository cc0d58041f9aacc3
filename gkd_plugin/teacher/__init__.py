"""The teacher: its wrapper, its input, its readouts, the map of its classes, and fitting."""

from gkd_plugin.teacher.class_map import ClassMap
from gkd_plugin.teacher.fitting import clean_loader, fit_class_centres
from gkd_plugin.teacher.readouts import Answers
from gkd_plugin.teacher.wrapper import DTYPES, RefilledTeacher

__all__ = ["DTYPES", "Answers", "ClassMap", "RefilledTeacher", "clean_loader", "fit_class_centres"]
