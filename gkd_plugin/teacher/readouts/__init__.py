"""The readouts of the teacher, by name; every module of this folder is imported, so that a new file is a new readout.

To add one, write one file here with a subclass of :class:`Readout`; ``local_classifier: '<its name>'`` then finds it,
and the wrapper gives it training images, keeps, moves and saves what it returns, and asks it for logits::

    class NearestImage(Readout):
        name = "nearest"
        wants_views = True

        def fit(self, centres, seen):
            return {"rows": seen.rows, "labels": seen.labels}

        def logits(self, fitted, answers): ...
"""

import importlib
import pkgutil

from gkd_plugin.teacher.readouts.base import READOUTS, Answers, Readout, Seen

__all__ = ["READOUTS", "Answers", "Readout", "Seen"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
