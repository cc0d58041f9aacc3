import math

import numpy as np
import pytest
from scipy import stats

from gkd_plugin.compare.statistics import mean_of, paired_difference


def seeds(*values):
    return {(seed, None): value for seed, value in enumerate(values)}


def test_mean_and_standard_error_by_hand():
    """Deviations −3, −1, 1, 3: s² = 20 / 3, s / √4."""
    mean = mean_of(seeds(1.0, 3.0, 5.0, 7.0))
    assert (mean.value, mean.count) == (4.0, 4)
    assert mean.error == pytest.approx(math.sqrt(20 / 3) / 2)


def test_one_value_has_no_error():
    assert (mean_of(seeds(3.0)).value, mean_of(seeds(3.0)).error) == (3.0, None)


def test_difference_by_hand():
    """Differences 1, 2, 3: mean 2, s = 1, t = 2·√3 with two degrees of freedom."""
    difference = paired_difference(seeds(2.0, 4.0, 6.0), seeds(1.0, 2.0, 3.0))
    assert (difference.value, difference.count) == (2.0, 3)
    assert difference.error == pytest.approx(1 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert difference.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))  # closed form of Student's t for ν = 2


def test_agrees_with_scipy():
    generator = np.random.default_rng(0)
    ours, control = generator.normal(1, 2, 7), generator.normal(0, 2, 7)
    difference = paired_difference(seeds(*ours), seeds(*control))
    assert mean_of(seeds(*ours)).error == pytest.approx(stats.sem(ours))
    assert difference.error == pytest.approx(stats.sem(ours - control))
    assert difference.p_value == pytest.approx(stats.ttest_rel(ours, control).pvalue)


def test_only_seeds_that_both_have_are_paired():
    difference = paired_difference(seeds(5.0, 7.0, 100.0), {(1, None): 4.0, (0, None): 4.0, (3, None): -100.0})
    assert (difference.value, difference.count) == (2.0, 2)
    assert paired_difference({(0, None): 1.0}, {(1, None): 1.0}) is None


def test_rounding_is_no_spread():
    """25.0 and 25.4 against 26.7 and 27.1: equal differences of 1.7, whatever their last bits say."""
    found = paired_difference({(0, None): 26.7, (1, None): 27.1}, {(0, None): 25.0, (1, None): 25.4})
    assert found.value == pytest.approx(1.7)
    assert found.error > 0
    assert found.p_value is None


@pytest.mark.parametrize("ours", [seeds(2.0), seeds(2.0, 3.0)])
def test_no_p_value_of_one_pair_or_of_equal_differences(ours):
    difference = paired_difference(ours, seeds(1.0, 2.0))
    assert (difference.value, difference.p_value) == (1.0, None)


def test_the_confidence_interval_over_tasks():
    values = np.random.default_rng(1).normal(50, 5, 6)
    mean = mean_of({(0, task): value for task, value in enumerate(values)})
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert (mean.value - mean.error, mean.value + mean.error) == pytest.approx((low, high))


def test_a_task_counts_once_however_many_seeds():
    """Tasks 1 and 3 after the mean over seeds; s = √2, t(0.975; 1) = 12.706."""
    mean = mean_of({(0, 0): 0.0, (1, 0): 2.0, (0, 1): 2.0, (1, 1): 4.0})
    assert (mean.value, mean.count) == (2.0, 2)
    assert mean.error == pytest.approx(12.7062, rel=1e-5)


def test_tasks_are_paired_with_their_seeds():
    """Differences: task 0: 1 and 3, task 1: 5 (its other seed failed): 2 and 5."""
    ours = {(0, 0): 11.0, (1, 0): 13.0, (0, 1): 15.0}
    difference = paired_difference(ours, {(0, 0): 10.0, (1, 0): 10.0, (0, 1): 10.0, (1, 1): 0.0})
    assert (difference.value, difference.count) == (3.5, 2)
    assert difference.p_value == pytest.approx(stats.ttest_1samp([2.0, 5.0], 0).pvalue)
