"""The difference of two systems on the same items.

| data           | p-value                                        | interval and bound                          |
|----------------|------------------------------------------------|---------------------------------------------|
| right or wrong | McNemar, exact                                 | Tango's score interval (1998)               |
| anything else  | exchanging the two systems' answers at random, | BCa bootstrap of items or groups, in pairs  |
|                | a whole group at once                          |                                             |

McNemar's test is the second one carried through for 0/1 values, so all p-values mean the same. Where resampling says
little (under 10 units, or no spread at all), Tango's interval with every unit a trial takes its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pando.evaluate.sample import Sample, jackknife_error
from pando.evaluate.statistics import FEW, bca, finite

_EXCHANGES = 4999
_CHUNK = 4_000_000  # numbers of a weight matrix held at once


@dataclass(frozen=True)
class Difference:
    """How much better the first system is.

    Attributes:
        value, low, high: the difference and its two-sided interval.
        p: two-sided, of there being none.
        n: items.
        error: standard error.
        discordant: share of items that exactly one of the two has right; None unless 0/1 and without groups.
        method: of the interval.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    error: float
    discordant: float | None
    method: str

    def as_dict(self) -> dict[str, float | str | None]:
        """JSON-able; infinite ends become null."""
        low, high = finite(self.low), finite(self.high)
        return {"diff": self.value, "low": low, "high": high, "p": self.p, "method": self.method}


def difference(a: Sample, b: Sample, confidence: float = 0.95) -> Difference:
    """`a`'s quality minus `b`'s; both hold scores of the same items in the same order."""
    tail = (1 - confidence) / 2
    value = a.value - b.value
    if a.binary and b.binary and not a.clustered:
        first, second = _discordant(a, b)
        low, high = tango(first, second, a.n, tail)
        share = (first + second) / a.n
        error = math.sqrt(max(share - value**2, 0.0) / a.n)
        return Difference(value, low, high, mcnemar(first, second), a.n, error, share, "score")
    low, high = _ends(a, b, (tail, 1 - tail))
    error = jackknife_error(a.left_out - b.left_out) if a.units > 1 else 0.0
    method = "bca bootstrap" + (" by group" if a.clustered else "")
    return Difference(value, low, high, _exchange(a, b), a.n, error, None, method)


def difference_bound(a: Sample, b: Sample, alpha: float = 0.05) -> float:
    """What `a`'s quality minus `b`'s is above with confidence 1 - `alpha`; -inf where the samples say nothing."""
    if a.binary and b.binary and not a.clustered:
        return tango(*_discordant(a, b), a.n, alpha)[0]
    return _ends(a, b, (alpha,))[0]


def _ends(a: Sample, b: Sample, tails: tuple[float, ...]) -> list[float]:
    gap, units = a.value - b.value, a.independent
    if a.units >= FEW:
        gaps = a.left_out - b.left_out
        if float(np.ptp(gaps)) > 0:
            return bca(gap, a.resampled - b.resampled, gaps, units, tails)
    if not (a.bounded and b.bounded):
        return [math.copysign(math.inf, tail - 0.5) for tail in tails]
    # differences of values between 0 and 1 vary at most as much as those of right and wrong answers
    moved = max(float(np.abs(a.values - b.values).mean()), abs(gap))
    return [
        tango((moved + gap) / 2 * units, (moved - gap) / 2 * units, units, min(tail, 1 - tail))[int(tail > 0.5)]
        for tail in tails
    ]


def _discordant(a: Sample, b: Sample) -> tuple[int, int]:
    return int((a.values > b.values).sum()), int((a.values < b.values).sum())


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p-value (McNemar 1947): `first` and `second` count the items that only that system has right."""
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def tango(first: float, second: float, n: float, tail: float) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions (Tango 1998), error `tail` on each side.

    Args:
        first, second: items that only the first, only the second system has right.
        n: all items.
        tail: error on each side.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = -float(norm.ppf(tail))

    def distance(gap: float, wanted: float) -> float:
        # the share of items that only the second has right, most likely if the difference were `gap`
        slope = (2 * n - first + second) * gap - first - second
        share = (math.sqrt(max(slope**2 + 8 * n * second * gap * (1 - gap), 0.0)) - slope) / (4 * n)
        spread = math.sqrt(max(n * (2 * share + gap * (1 - gap)), 0.0))
        return first - second - n * gap - wanted * spread

    def end(wanted: float) -> float:
        edge = 1 - 1e-12
        if distance(-edge, wanted) <= 0:
            return -1.0
        return 1.0 if distance(edge, wanted) >= 0 else float(brentq(distance, -edge, edge, args=(wanted,), xtol=1e-10))

    return end(z), end(-z)


def _exchange(a: Sample, b: Sample) -> float:
    """Two-sided p-value of no difference, the two answers to each unit exchanged at random (Noreen 1989)."""
    generator = np.random.default_rng(a.seed)
    observed, extreme = abs(a.value - b.value), 0
    both = a.items + b.items
    rows = max(1, _CHUNK // len(both))
    for start in range(0, _EXCHANGES, rows):
        swap = generator.random((min(rows, _EXCHANGES - start), a.units)) < 0.5
        swapped = swap[:, a.codes]
        first = a.metric.aggregate_counts(both, np.hstack([~swapped, swapped]))
        second = a.metric.aggregate_counts(both, np.hstack([swapped, ~swapped]))
        extreme += int((np.abs(first - second) >= observed - 1e-12).sum())
    return (1 + extreme) / (1 + _EXCHANGES)
