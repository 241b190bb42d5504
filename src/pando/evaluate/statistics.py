"""Intervals and bounds for the quality of one system, with methods that hold for small samples.

| data                        | interval                                | one-sided bound                     |
|-----------------------------|-----------------------------------------|-------------------------------------|
| right or wrong              | Wilson score                            | Clopper-Pearson (exact)             |
| right or wrong, in groups   | Wilson on the effective sample size     | Clopper-Pearson on the same         |
| anything else               | BCa bootstrap of items, or of groups    | BCa bootstrap                       |
| anything else, under 10 units or without any spread | Wilson, every unit a trial | Clopper-Pearson    |

The effective sample size divides p (1 - p) by the cluster jackknife's variance (Korn and Graubard 1998). BCa is Efron
1987 with the percentiles widened for small samples (Hesterberg 2015). Decisions use the one-sided bounds, which keep
their error rate; shown intervals use the two-sided methods, which are not wider than they need to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pando.evaluate.sample import Sample, jackknife_error

FEW = 10  # units below which resampling them says little


@dataclass(frozen=True)
class Interval:
    """A quality with its two-sided interval; infinite ends mean that the sample says nothing about them."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def as_dict(self) -> dict[str, float | int | str | None]:
        """JSON-able; infinite ends become null."""
        low, high = finite(self.low), finite(self.high)
        return {"quality": self.value, "low": low, "high": high, "n": self.n, "method": self.method}


def finite(end: float) -> float | None:
    """An end of an interval as JSON can hold it."""
    return end if math.isfinite(end) else None


def interval(sample: Sample, confidence: float = 0.95) -> Interval:
    """The two-sided interval of a sample's quality, by the method that suits it."""
    tail = (1 - confidence) / 2
    method = _method(sample)
    if method == "bca":
        low, high = bca(sample.value, sample.resampled, sample.left_out, sample.independent, (tail, 1 - tail))
    else:
        trials = _trials(sample, method, tail)
        low, high = _bounded(sample, *wilson(sample.value, trials, tail)) if trials else (-math.inf, math.inf)
    return Interval(sample.value, low, high, sample.n, _NAMES[method] + (" by group" if sample.clustered else ""))


def lower_bound(sample: Sample, alpha: float = 0.05) -> float:
    """What the quality is above with confidence 1 - `alpha`; -inf where the sample says nothing."""
    return _bound(sample, alpha, upper=False)


def upper_bound(sample: Sample, alpha: float = 0.05) -> float:
    """What the quality is below with confidence 1 - `alpha`; inf where the sample says nothing."""
    return _bound(sample, alpha, upper=True)


def _bound(sample: Sample, alpha: float, upper: bool) -> float:
    method = _method(sample)
    if method == "bca":
        tail = 1 - alpha if upper else alpha
        return bca(sample.value, sample.resampled, sample.left_out, sample.independent, (tail,))[0]
    trials = _trials(sample, method, alpha)
    if not trials:
        return math.inf if upper else -math.inf
    return clopper_pearson(sample.value, trials, alpha, upper)


_NAMES = {"binomial": "wilson", "effective": "wilson", "bca": "bca bootstrap", "trials": "wilson on units"}


def _method(sample: Sample) -> str:
    if sample.binary and not sample.clustered:
        return "binomial"
    if sample.units >= 2 and float(np.ptp(sample.left_out)) > 0:
        if sample.binary:
            return "effective"
        if sample.units >= FEW:
            return "bca"
    return "trials"


def _trials(sample: Sample, method: str, tail: float) -> float:
    """How many independent trials the sample is worth; 0 where its values are no shares at all."""
    if method == "binomial":
        return sample.n
    if method == "effective":
        return effective_size(sample, tail)
    # a mean of values between 0 and 1 varies at most as much as a proportion
    return sample.independent if sample.bounded else 0


def _bounded(sample: Sample, low: float, high: float) -> tuple[float, float]:
    """Rounding must not put an end on the wrong side of the value."""
    return min(low, sample.value), max(high, sample.value)


def wilson(share: float, trials: float, tail: float) -> tuple[float, float]:
    """Wilson's score interval (1927) with error `tail` on each side; `trials` need not be whole."""
    from scipy.stats import norm

    z2 = float(norm.ppf(tail)) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(share: float, trials: float, alpha: float, upper: bool = False) -> float:
    """Exact one-sided bound of a proportion (Clopper and Pearson 1934); `trials` need not be whole."""
    from scipy.stats import beta

    right = share * trials
    wrong = trials - right
    if upper:
        return float(beta.ppf(1 - alpha, right + 1, wrong)) if wrong > 1e-9 else 1.0
    return float(beta.ppf(alpha, right, wrong + 1)) if right > 1e-9 else 0.0


def effective_size(sample: Sample, tail: float) -> float:
    """How many independent items a clustered share is worth, reduced for few groups by Student's t at `tail`."""
    from scipy.stats import norm, t

    share, error = sample.value, jackknife_error(sample.left_out)
    size = min(share * (1 - share) / error**2, sample.n)
    few = float(norm.ppf(tail) / t.ppf(tail, max(sample.independent - 1, 1)))
    return size * few**2


def bca(
    value: float, resampled: np.ndarray, left_out: np.ndarray, independent: float, tails: Sequence[float]
) -> list[float]:
    """Bias-corrected and accelerated bootstrap ends (Efron 1987), widened for small samples (Hesterberg 2015).

    Args:
        value: the statistic on the sample itself.
        resampled: float [B], on resamples of its units.
        left_out: float [units], without each unit in turn.
        independent: how many units of equal size count as much.
        tails: probabilities, such as (0.025, 0.975).

    Returns:
        The end at each probability.
    """
    from scipy.stats import norm, t

    resamples = len(resampled)
    below = ((resampled < value).sum() + (resampled <= value).sum()) / 2
    bias = float(norm.ppf(np.clip(below / resamples, 0.5 / resamples, 1 - 0.5 / resamples)))
    influence = left_out.mean() - left_out
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    freedom = max(independent - 1, 1)
    ends = []
    for tail in tails:
        z = float(t.ppf(tail, freedom)) * math.sqrt((freedom + 1) / freedom)
        moved = bias + z
        stretch = max(1 - acceleration * moved, 1e-3)  # beyond this Efron's map turns back on itself
        ends.append(float(np.quantile(resampled, norm.cdf(bias + moved / stretch))))
    return ends


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values so corrected that calling all below 0.05 different is wrong even once in at most 5 % (Holm 1979)."""
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = running
    return corrected
