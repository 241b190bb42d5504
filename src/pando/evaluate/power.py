"""What the data could have shown, and how many rows would show it: normal approximations at 80 % power."""

from __future__ import annotations

import math

from pando.evaluate.paired import Difference
from pando.evaluate.sample import Sample, jackknife_error

POWER = 0.8
_MOST = 10_000_000  # more rows than anybody labels: as good as never


def _z(probability: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(probability))


def detectable(found: Difference, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided test at `alpha` finds in 80 % of samples like this one.

    For 0/1 data Connor's formula (1987) at the observed share of discordant items, which cannot be smaller than the
    difference itself; otherwise from the standard error. Two systems that never differed: as if 0/1.
    """
    first, second = _z(1 - alpha / 2), _z(POWER)
    if found.discordant is None and found.error > 0:
        return (first + second) * found.error
    share, root = found.discordant or 0.0, math.sqrt(found.n)

    def short(gap: float) -> bool:
        moving = max(share, gap)
        return first * math.sqrt(moving) + second * math.sqrt(max(moving - gap**2, 0.0)) > gap * root

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def rows_for_target(sample: Sample, target: float, alpha: float = 0.05) -> int | None:
    """How many rows show, in 80 % of samples, on which side of `target` a system of this measured quality is.

    None where no number of rows would: the measured quality is the target.
    """
    gap = abs(sample.value - target)
    if sample.binary and 0 < target < 1:
        # the spread at the target for the error, at the measured quality for the power
        at_target, here = target * (1 - target), sample.value * (1 - sample.value)
        inflation = 1.0
        if sample.clustered and here > 0 and sample.units > 1:
            inflation = max(1.0, jackknife_error(sample.left_out) ** 2 * sample.n / here)
        spread = math.sqrt(inflation) * (_z(1 - alpha) * math.sqrt(at_target) + _z(POWER) * math.sqrt(here))
    else:
        error = jackknife_error(sample.left_out) if sample.units > 1 else 0.0
        spread = (_z(1 - alpha) + _z(POWER)) * error * math.sqrt(sample.n)
    return _rows(spread, gap)


def rows_for_margin(found: Difference, margin: float, alpha: float = 0.05) -> int | None:
    """How many rows show, in 80 % of samples, on which side of -`margin` a difference of this measured size is."""
    gap = abs(found.value + margin)
    error = found.error or math.sqrt(margin / found.n)  # never seen to differ: as if they may differ by the margin
    return _rows((_z(1 - alpha) + _z(POWER)) * error * math.sqrt(found.n), gap)


def _rows(spread: float, gap: float) -> int | None:
    if gap <= 0 or spread / gap > math.sqrt(_MOST):
        return None
    return max(1, math.ceil((spread / gap) ** 2))
