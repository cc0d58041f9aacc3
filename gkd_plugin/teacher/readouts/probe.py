"""A local classifier by logistic regression."""

from gkd_plugin.functional import fit_probe
from gkd_plugin.teacher.readouts.discriminant import CalibratedDiscriminant


class CalibratedProbe(CalibratedDiscriminant):
    """z = φ_T(x) · weightᵀ + bias of a linear probe, see :mod:`gkd_plugin.functional.probe`; all else is the same."""

    name = "probe"
    family = staticmethod(fit_probe)
