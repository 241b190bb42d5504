from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando.evaluate.sample import Sample, jackknife_error
from pando.evaluate.statistics import bca, clopper_pearson, holm, interval, lower_bound, upper_bound, wilson
from pando.task.metrics import Accuracy, MacroF1
from tests.evaluate.samples import Mean, labelled, scores, share


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 50), (43, 50), (500, 1000)])
def test_wilson_and_exact_bounds_agree_with_statsmodels(right, n):
    from statsmodels.stats.proportion import proportion_confint as confint

    found = interval(share(right, n))
    assert (found.low, found.high) == pytest.approx(confint(right, n, 0.05, method="wilson"), abs=1e-12)
    low, high = confint(right, n, 0.10, method="beta")
    assert lower_bound(share(right, n), 0.05) == pytest.approx(low if right else 0.0, abs=1e-12)
    assert upper_bound(share(right, n), 0.05) == pytest.approx(high if right < n else 1.0, abs=1e-12)


def test_bca_agrees_with_scipy_where_samples_are_large():
    from scipy.stats import bootstrap

    values = np.random.default_rng(5).gamma(2.0, size=80)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    generator = np.random.default_rng(2)
    resampled = values[generator.integers(80, size=(20_000, 80))].mean(axis=1)
    left_out = (values.sum() - values) / 79
    ours = bca(values.mean(), resampled, left_out, 1e9, (0.025, 0.975))
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.01)


def test_small_samples_get_wider_ends():
    values = np.random.default_rng(3).random(15)
    sample = Sample(scores(values), Mean())
    narrow = bca(sample.value, sample.resampled, sample.left_out, 1e9, (0.025, 0.975))
    found = interval(sample)
    assert found.low < narrow[0] < narrow[1] < found.high


def test_holm_agrees_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    for seed in range(20):
        p_values = np.random.default_rng(seed).random(1 + seed % 8) ** 2
        assert holm(list(p_values)) == pytest.approx(list(multipletests(p_values, method="holm")[1]), abs=1e-12)
    assert holm([]) == []


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).random(60)
    assert jackknife_error(Sample(scores(values), Mean()).left_out) == pytest.approx(values.std(ddof=1) / math.sqrt(60))


def test_groups_that_say_the_same_count_as_one_item_each():
    """Ten copies of each item are worth about as much as one copy, not ten."""
    values = np.random.default_rng(0).random(60) < 0.8
    once = interval(Sample(scores(values), Accuracy()))
    tenfold = interval(Sample(scores(np.repeat(values, 10)), Accuracy(), [str(i) for i in np.repeat(range(60), 10)]))
    naive = interval(Sample(scores(np.repeat(values, 10)), Accuracy()))
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=0.1)
    assert tenfold.high - tenfold.low > 2.5 * (naive.high - naive.low)
    assert tenfold.method == "wilson by group"


def test_groups_of_one_are_no_groups():
    names = [str(i) for i in range(50)]
    assert interval(share(40, 50, names)) == interval(share(40, 50))


@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_ends_hold_the_value_and_stay_in_range(values, groups, data):
    names = data.draw(st.one_of(st.none(), st.just([str(i % groups) for i in range(len(values))])))
    sample = Sample(scores(values), Mean(), names)
    found = interval(sample)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0
    assert 0 <= lower_bound(sample) <= upper_bound(sample) <= 1
    assert lower_bound(sample, 0.01) <= lower_bound(sample, 0.2) + 1e-12


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", None])), min_size=1, max_size=60))
def test_macro_f1_ends_hold_for_any_sample(pairs):
    found = interval(Sample(labelled(*zip(*pairs, strict=True)), MacroF1()))
    assert 0 <= found.low <= found.high <= 1
    assert found.high > found.low


def test_all_right_is_no_certainty():
    truth = ["a", "b"] * 25
    for sample in (
        share(50, 50),
        Sample(labelled(truth, truth), MacroF1()),
        share(50, 50, [str(i // 5) for i in range(50)]),
    ):
        found = interval(sample)
        assert found.high == 1.0
        assert found.low < 0.94
        assert lower_bound(sample) < 0.95


def test_a_constant_value_of_unknown_range_bounds_nothing():
    found = interval(Sample(scores([7.0] * 30), Mean()))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.as_dict()["low"] is None
    assert lower_bound(Sample(scores([7.0] * 30), Mean())) == -math.inf


def test_an_empty_sample_is_refused():
    with pytest.raises(ValueError, match="no items"):
        Sample([], Accuracy())


def test_the_same_seed_gives_the_same_interval_whatever_ran_before():
    values = np.random.default_rng(4).random(40)
    first = interval(Sample(scores(values), Mean(), seed=3))
    interval(Sample(scores(values[:20]), Mean(), seed=9))
    assert interval(Sample(scores(values), Mean(), seed=3)) == first


def test_large_samples_are_resampled_in_pieces():
    values = np.random.default_rng(4).random(2500)
    found = interval(Sample(scores(values), Mean()))
    half = 1.96 * values.std() / 50
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)


def test_bounds_of_a_share_are_those_of_whole_numbers():
    assert clopper_pearson(0.3, 10, 0.05) == pytest.approx(0.0872644, abs=1e-6)  # tables of Clopper and Pearson
    assert wilson(0.5, 10, 0.025) == pytest.approx((0.2365931, 0.7634069), abs=1e-6)


def cover(make, truth: float, runs: int) -> tuple[float, float]:
    """Share of intervals that hold the truth, and of 95 % lower bounds above it."""
    samples = [make(np.random.default_rng(seed)) for seed in range(runs)]
    inside = [i.low <= truth <= i.high for i in map(interval, samples)]
    return float(np.mean(inside)), float(np.mean([lower_bound(s) > truth for s in samples]))


@pytest.mark.parametrize(("n", "p"), [(50, 0.7), (50, 0.93), (300, 0.85)])
def test_intervals_of_shares_cover(n, p):
    inside, false = cover(lambda g: share(int(g.binomial(n, p)), n), p, 1000)
    assert 0.925 <= inside <= 0.985
    assert false <= 0.065


def test_intervals_of_macro_f1_cover():
    answers = {"a": [0.9, 0.05, 0.05], "b": [0.2, 0.7, 0.1], "c": [0.1, 0.2, 0.7]}
    prior = np.array([0.6, 0.3, 0.1])
    joint = prior[:, None] * np.array(list(answers.values()))
    truth = float(np.mean(2 * np.diag(joint) / (joint.sum(0) + joint.sum(1))))

    def make(generator):
        cells = generator.choice(9, size=100, p=joint.ravel())
        return Sample(labelled(["abc"[c // 3] for c in cells], ["abc"[c % 3] for c in cells]), MacroF1())

    inside, false = cover(make, truth, 200)
    assert inside >= 0.9
    assert false <= 0.1


def test_intervals_by_group_cover_where_naive_ones_do_not():
    def make(generator, grouped=True):
        chances = generator.beta(0.7 * 2, 0.3 * 2, 40)
        values = (generator.random((40, 8)) < chances[:, None]).ravel()
        return Sample(scores(values), Accuracy(), [str(i // 8) for i in range(320)] if grouped else None)

    inside, false = cover(make, 0.7, 400)
    naive, _ = cover(lambda g: make(g, grouped=False), 0.7, 400)
    assert 0.92 <= inside <= 0.985
    assert false <= 0.075
    assert naive < 0.8
