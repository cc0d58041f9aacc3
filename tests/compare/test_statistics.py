import math

import numpy as np
import pytest
from scipy import stats

from gkd_plugin.compare.statistics import mean_of, paired_difference


def test_mean_and_standard_error_by_hand():
    """Deviations −3, −1, 1, 3: s² = 20 / 3, s / √4."""
    mean = mean_of([1.0, 3.0, 5.0, 7.0])
    assert (mean.value, mean.count) == (4.0, 4)
    assert mean.error == pytest.approx(math.sqrt(20 / 3) / 2)


def test_one_value_has_no_error():
    assert (mean_of([3.0]).value, mean_of([3.0]).error) == (3.0, None)


def test_difference_by_hand():
    """Differences 1, 2, 3: mean 2, s = 1, t = 2·√3 with two degrees of freedom."""
    difference = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (difference.value, difference.count) == (2.0, 3)
    assert difference.error == pytest.approx(1 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert difference.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))  # closed form of Student's t for ν = 2


def test_agrees_with_scipy():
    generator = np.random.default_rng(0)
    ours, control = generator.normal(1, 2, 7), generator.normal(0, 2, 7)
    difference = paired_difference(dict(enumerate(ours)), dict(enumerate(control)))
    assert mean_of(list(ours)).error == pytest.approx(stats.sem(ours))
    assert difference.error == pytest.approx(stats.sem(ours - control))
    assert difference.p_value == pytest.approx(stats.ttest_1samp(ours - control, 0).pvalue)


def test_only_seeds_that_both_have_are_paired():
    difference = paired_difference({0: 5.0, 1: 7.0, 2: 100.0}, {1: 4.0, 0: 4.0, 3: -100.0})
    assert (difference.value, difference.count) == (2.0, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("ours", [{0: 2.0}, {0: 2.0, 1: 3.0}])
def test_no_p_value_of_one_pair_or_of_equal_differences(ours):
    difference = paired_difference(ours, {0: 1.0, 1: 2.0})
    assert (difference.value, difference.p_value) == (1.0, None)
