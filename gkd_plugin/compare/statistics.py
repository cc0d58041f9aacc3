"""Means, standard errors and the paired test of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["Difference", "Mean", "mean_of", "paired_difference"]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        error: its standard error, s/√n; ``None`` for one seed.
        count: n.
    """

    value: float
    error: float | None
    count: int


@dataclass(frozen=True)
class Difference(Mean):
    """The mean of paired differences.

    Attributes:
        p_value: of the two-sided paired t-test; ``None`` for fewer than two pairs or differences that are all equal.
    """

    p_value: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error.

    >>> mean_of([1.0, 3.0])
    Mean(value=2.0, error=1.0, count=2)
    """
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(fmean(values), error, len(values))


def paired_difference(ours: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """Ours − control over the seeds that both have, with SciPy's paired t-test; ``None`` without such a seed.

    Args:
        ours: seed → score.
        control: likewise.
    """
    from scipy.stats import ttest_rel

    seeds = sorted(ours.keys() & control.keys())
    if not seeds:
        return None
    differences = [ours[seed] - control[seed] for seed in seeds]
    mean = mean_of(differences)
    p_value = None
    if mean.error:
        p_value = float(ttest_rel([ours[seed] for seed in seeds], [control[seed] for seed in seeds]).pvalue)
    return Difference(mean.value, mean.error, mean.count, p_value)
