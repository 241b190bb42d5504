from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando.evaluate.paired import difference, difference_bound, mcnemar, tango
from pando.evaluate.power import detectable, rows_for_margin, rows_for_target
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import lower_bound
from pando.task.metrics import Accuracy, MacroF1
from tests.evaluate.samples import Mean, labelled, scores, share


def pair(first: int, second: int, n: int, groups=None) -> tuple[Sample, Sample]:
    """Two systems, the first alone right on `first` items, the second alone on `second`, both on the rest."""
    a = [1] * first + [0] * second + [1] * (n - first - second)
    b = [0] * first + [1] * second + [1] * (n - first - second)
    return Sample(scores(a), Accuracy(), groups), Sample(scores(b), Accuracy(), groups)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (8, 2), (30, 55)])
def test_mcnemar_agrees_with_statsmodels(first, second):
    from statsmodels.stats import contingency_tables

    theirs = contingency_tables.mcnemar([[10, first], [second, 10]], exact=True).pvalue
    assert mcnemar(first, second) == pytest.approx(min(theirs, 1.0), abs=1e-12)


def score_distance(first, second, n, gap):
    """Tango's statistic with the constrained likelihood maximised numerically."""
    from scipy.optimize import minimize_scalar

    def loss(share):
        cells = np.array([share + gap, share, 1 - 2 * share - gap])
        counts = np.array([first, second, n - first - second])
        return -float((counts * np.log(np.maximum(cells, 1e-300))).sum())

    low, high = max(0.0, -gap), (1 - gap) / 2
    share = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (first - second - n * gap) / math.sqrt(n * (2 * share + gap * (1 - gap)))


@pytest.mark.parametrize(("first", "second", "n"), [(12, 2, 50), (1, 0, 44), (5, 5, 30), (3, 40, 200)])
def test_tango_ends_solve_the_score_equation(first, second, n):
    low, high = tango(first, second, n, 0.025)
    assert score_distance(first, second, n, low) == pytest.approx(1.959964, abs=1e-3)
    assert score_distance(first, second, n, high) == pytest.approx(-1.959964, abs=1e-3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_tango_is_antisymmetric_and_holds_the_difference(first, second, rest):
    n = first + second + rest
    if not n:
        return
    low, high = tango(first, second, n, 0.025)
    assert tango(second, first, n, 0.025) == pytest.approx((-high, -low), abs=1e-6)
    assert -1 <= low <= (first - second) / n + 1e-6
    assert (first - second) / n <= high + 1e-6
    assert high - low > 0


def test_never_differing_is_not_proof_of_sameness():
    a, b = pair(0, 0, 100)
    found = difference(a, b)
    assert (found.value, found.p) == (0.0, 1.0)
    assert found.low == pytest.approx(-(1.96**2) / (100 + 1.96**2), abs=1e-3)
    truth = ["x", "y"] * 50
    same = Sample(labelled(truth, truth[::-1]), MacroF1())
    found = difference(same, same)
    assert found.low < -0.02 < 0.02 < found.high
    assert found.p == 1.0


def test_bootstrap_of_pairs_agrees_with_the_score_interval_on_many_items():
    a, b = pair(60, 30, 600)
    score = difference(a, b)
    mean = difference(Sample(a.items, Mean(), [str(i) for i in range(600)]), Sample(b.items, Mean()))
    assert score == mean  # groups of one and another name change nothing
    pairs = [str(i // 2) for i in range(600)]
    clustered = difference(Sample(a.items, Accuracy(), pairs), Sample(b.items, Accuracy(), pairs))
    assert clustered.method == "bca bootstrap by group"
    # whole pairs of items fall on one side: their differences spread twice as far
    assert clustered.high - clustered.low == pytest.approx(math.sqrt(2) * (score.high - score.low), rel=0.1)


def test_exchange_p_value_is_that_of_mcnemar():
    a, b = pair(22, 9, 120)
    values = [v * 0.5 for v in a.values], [v * 0.5 for v in b.values]
    found = difference(Sample(scores(values[0]), Mean()), Sample(scores(values[1]), Mean()))
    assert found.p == pytest.approx(mcnemar(22, 9), abs=0.01)
    assert found.discordant is None


def test_too_few_units_or_no_spread_give_no_false_certainty():
    first, second = Sample(scores([0.9] * 5), Mean()), Sample(scores([0.1] * 5), Mean())
    found = difference(first, second)
    assert found.low < 0.5 < 0.8 < found.high
    beyond = difference(Sample(scores([9.0] * 5), Mean()), Sample(scores([3.0] * 5), Mean()))
    assert (beyond.low, beyond.high) == (-math.inf, math.inf)


def test_bound_is_one_sided():
    a, b = pair(15, 20, 300)
    assert difference(a, b).low < difference_bound(a, b) < -5 / 300


@pytest.mark.parametrize("discordant", [0.05, 0.2])
def test_difference_bound_keeps_its_error_rate(discordant):
    """Two systems exactly at the margin are called not worse in about 5 % of samples."""
    margin, n, false = 0.03, 150, 0
    cells = [(discordant - margin) / 2, (discordant + margin) / 2, 1 - discordant]
    for seed in range(600):
        first, second, _ = np.random.default_rng(seed).multinomial(n, cells)
        false += tango(int(first), int(second), n, 0.05)[0] > -margin
    assert false / 600 <= 0.075


def test_detectable_difference_is_found_in_four_of_five_samples():
    for first, second, n in [(20, 20, 200), (100, 100, 1000)]:
        gap = detectable(difference(*pair(first, second, n)))
        share = max((first + second) / n, gap)
        cells = [(share + gap) / 2, (share - gap) / 2, 1 - share]
        draws = np.random.default_rng(1).multinomial(n, cells, size=1500)
        power = np.mean([mcnemar(int(x), int(y)) < 0.05 for x, y, _ in draws])
        assert 0.70 <= power <= 0.87


def test_detectable_difference_of_systems_that_never_differed_needs_some_discordant_items():
    assert detectable(difference(*pair(0, 0, 100))) == pytest.approx(0.0785, abs=0.01)


def test_rows_for_a_target_decide_in_four_of_five_samples():
    sample = share(90, 100)
    rows = rows_for_target(sample, 0.85)
    right = np.random.default_rng(2).binomial(rows, 0.9, size=500)
    passed = np.mean([lower_bound(share(int(r), rows)) >= 0.85 for r in right])
    assert 0.72 <= passed <= 0.88
    assert rows_for_target(share(85, 100), 0.85) is None


def test_rows_for_a_target_follow_the_spread():
    values = np.random.default_rng(3).random(200)
    once, target = Sample(scores(values), Mean()), float(values.mean()) - 0.02
    twice = Sample(scores(np.repeat(values, 2)), Mean(), [str(i // 2) for i in range(400)])
    assert rows_for_target(twice, target) == pytest.approx(2 * rows_for_target(once, target), rel=0.05)


def test_rows_for_a_margin():
    found = difference(*pair(20, 20, 400))
    rows = rows_for_margin(found, 0.02)
    scale = rows / 400
    low = tango(20 * scale, 20 * scale, rows, 0.05)[0]
    assert low > -0.02
    assert rows_for_margin(difference(*pair(0, 8, 400)), 0.02) is None
    assert rows_for_margin(difference(*pair(0, 0, 400)), 0.02) < 1000
