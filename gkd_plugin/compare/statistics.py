"""Means, standard errors, confidence intervals and the paired test of a comparison."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean, stdev

__all__ = ["Mean", "Repetition", "mean_of", "paired_difference"]

_ROUNDING = 1e-9
"""Of percentages: differences that are equal differ by no more."""
Repetition = tuple[int, "int | None"]
"""Seed, and the number of the few-shot task where there are several."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, or over tasks.

    Attributes:
        value: the mean.
        error: its standard error, s/√n; over tasks the half-width of the 95 % confidence interval, t(0.975; n−1)·s/√n.
            ``None`` for n = 1.
        count: n.
        p_value: of paired differences: of the two-sided paired t-test; ``None`` for fewer than two pairs or differences
            that are all equal.
    """

    value: float
    error: float | None
    count: int
    p_value: float | None = None


def mean_of(values: Mapping[Repetition, float]) -> Mean:
    """Mean over seeds with its standard error; with tasks, over tasks (each the mean of its seeds) with its interval.

    >>> mean_of({(0, None): 1.0, (1, None): 3.0})
    Mean(value=2.0, error=1.0, count=2, p_value=None)
    """
    from scipy.stats import t

    sample = _sample(values)
    if len(sample) < 2:
        return Mean(fmean(sample), None, len(sample))
    error = stdev(sample) / math.sqrt(len(sample))
    factor = float(t.ppf(0.975, len(sample) - 1)) if _has_tasks(values) else 1.0
    return Mean(fmean(sample), error * factor, len(sample))


def paired_difference(ours: Mapping[Repetition, float], control: Mapping[Repetition, float]) -> Mean | None:
    """Ours − control over the repetitions that both have, with SciPy's paired t-test; ``None`` without one.

    Args:
        ours: repetition → score.
        control: likewise.
    """
    from scipy.stats import ttest_1samp

    differences = {key: value - control[key] for key, value in ours.items() if key in control}
    if not differences:
        return None
    mean, sample = mean_of(differences), _sample(differences)
    is_spread = mean.error is not None and mean.error > _ROUNDING * max(1.0, *map(abs, [*ours.values(), mean.value]))
    return replace(mean, p_value=float(ttest_1samp(sample, 0).pvalue)) if is_spread else mean


def _sample(values: Mapping[Repetition, float]) -> list[float]:
    """What counts as independent: the seeds, or the tasks."""
    if not _has_tasks(values):
        return list(values.values())
    by_task: defaultdict[int | None, list[float]] = defaultdict(list)
    for (_, task), value in values.items():
        by_task[task].append(value)
    return [fmean(own) for own in by_task.values()]


def _has_tasks(values: Mapping[Repetition, float]) -> bool:
    return any(task is not None for _, task in values)
