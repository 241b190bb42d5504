"""Which rung ships. Pure functions of measured numbers, so that a decision can be replayed.

With a quality target a rung passes if a one-sided lower bound of its quality on confirmation rows reaches the target,
and the chance that any rung below the target passes stays under 5 % over the whole ladder:

* climb: rungs are tested as they come, each at 5 % divided by the number of declared rungs, until one passes;
* sweep: all rungs are there, and are tested in the order of their quality on the rows that they were built with (which
  tells nothing about the confirmation rows). The first has four fifths of the 5 %, the others share the rest, and what
  a rung passes with goes on to the next (the fallback procedure, Wiens 2003).

Without one, the cheapest rung ships whose quality is less than the margin behind the best, by a paired one-sided 95 %
bound. Limits of latency and cost are compared with the measured numbers as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from pando.evaluate.paired import Difference, difference, difference_bound
from pando.evaluate.power import detectable, rows_for_margin, rows_for_target
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import holm, lower_bound, upper_bound
from pando.task.file import Target

Mode = Literal["climb", "sweep"]

ALPHA = 0.05
_FIRST = 0.8  # share of the error that a sweep's first test has


@dataclass(frozen=True)
class Candidate:
    """What was measured of one rung.

    Attributes:
        name: of the rung.
        select: quality on the rows that the rung chose with.
        confirm: scores on the confirmation rows; the same rows in the same order for all candidates.
        p95_ms: of a call, in milliseconds.
        cost_per_1k: US dollars of 1,000 calls.
    """

    name: str
    select: float
    confirm: Sample
    p95_ms: float
    cost_per_1k: float


@dataclass(frozen=True)
class Decision:
    """The choice.

    Attributes:
        chosen: name of the rung that ships, or None.
        best: name of the rung with the highest confirmed quality within the limits (of all, if none is within).
        why: in words, for people.
        missing: what the best lacks, in words; empty where something was chosen.
        undecided: rungs that the data neither passes nor rules out, with the rows of confirmation data that would
            decide (None: no number would).
    """

    chosen: str | None
    best: str | None
    why: str
    missing: list[str] = field(default_factory=list)
    undecided: dict[str, int | None] = field(default_factory=dict)


def climb_passes(candidate: Candidate, target: Target, declared: int) -> bool:
    """Whether a climb over `declared` rungs may stop here. Nothing passes where no quality is asked for."""
    if target.quality is None or over_limits(candidate, target):
        return False
    return lower_bound(candidate.confirm, ALPHA / declared) >= target.quality


def decide(mode: Mode, candidates: Sequence[Candidate], target: Target, declared: int) -> Decision:
    """The choice among measured rungs.

    Args:
        mode: how the rungs were run; it decides how the error is split.
        candidates: in the order in which they ran.
        target: of the task.
        declared: how many rungs the task declared, whether they could be run or not.
    """
    if not candidates:
        return Decision(None, None, "no rung could be measured")
    within = [c for c in candidates if not over_limits(c, target)]
    best = max(within or candidates, key=lambda c: (c.confirm.value, -c.cost_per_1k))
    if not within:
        return Decision(None, best.name, "no rung keeps the limits", over_limits(best, target))
    if target.quality is None:
        return _best_or_cheaper(within, best, target.margin)
    return _meets_target(mode, within, best, target.quality, declared)


def over_limits(candidate: Candidate, target: Target) -> list[str]:
    """The limits of latency and cost that a candidate does not keep, in words."""
    found = []
    if target.p95_ms is not None and candidate.p95_ms > target.p95_ms:
        found.append(f"95 % of its calls take {candidate.p95_ms:.0f} ms, {target.p95_ms:g} ms are allowed")
    if target.cost_per_1k is not None and candidate.cost_per_1k > target.cost_per_1k:
        found.append(f"1,000 calls cost ${candidate.cost_per_1k:.4f}, ${target.cost_per_1k:g} is allowed")
    return found


def _cheapest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda c: (c.cost_per_1k, -c.confirm.value, c.name))


def _meets_target(mode: Mode, within: Sequence[Candidate], best: Candidate, quality: float, declared: int) -> Decision:
    passed = _passed_climb(within, quality, declared) if mode == "climb" else _passed_sweep(within, quality)
    undecided = {
        c.name: rows_for_target(c.confirm, quality, ALPHA)
        for c in within
        if c.name not in passed and upper_bound(c.confirm, ALPHA) >= quality
    }
    if passed:
        chosen = _cheapest([c for c in within if c.name in passed])
        alpha = passed[chosen.name]
        how = "the first" if mode == "climb" else "the cheapest"
        why = (
            f"{chosen.name} is {how} whose quality is shown to reach {quality:g}: {chosen.confirm.value:.3f} on "
            f"{chosen.confirm.n} confirmation rows, above {lower_bound(chosen.confirm, alpha):.3f} with "
            f"{100 * (1 - alpha):.4g} % confidence"
        )
        return Decision(chosen.name, best.name, why, undecided=undecided)
    return _none_passed(best, quality, undecided)


def _passed_climb(candidates: Sequence[Candidate], quality: float, declared: int) -> dict[str, float]:
    """The first that passes, and the error it was tested at."""
    alpha = ALPHA / declared
    passed = (c.name for c in candidates if lower_bound(c.confirm, alpha) >= quality)
    return {name: alpha for name in [next(passed, None)] if name is not None}


def _passed_sweep(candidates: Sequence[Candidate], quality: float) -> dict[str, float]:
    """All that pass, and the error each was tested at."""
    passed: dict[str, float] = {}
    carried = 0.0
    for place, candidate in enumerate(sorted(candidates, key=lambda c: (-c.select, c.cost_per_1k, c.name))):
        share = _FIRST if place == 0 else (1 - _FIRST) / (len(candidates) - 1)
        alpha = carried + ALPHA * (share if len(candidates) > 1 else 1.0)
        carried = 0.0
        if lower_bound(candidate.confirm, alpha) >= quality:
            passed[candidate.name] = carried = alpha
    return passed


def _none_passed(best: Candidate, quality: float, undecided: dict[str, int | None]) -> Decision:
    value, n = best.confirm.value, best.confirm.n
    seen = f"{best.name} is best with {value:.3f} on {n} confirmation rows"
    if not undecided:
        missing = [f"{quality - value:.3f} of quality"]
        return Decision(None, best.name, f"no rung reaches {quality:g}: {seen}", missing, undecided)
    rows = undecided.get(best.name)
    enough = f"about {rows:,} rows would" if rows else "it is too close to the target for any number of rows"
    why = f"the data cannot decide whether {quality:g} is reached: {seen}; {enough}"
    missing = [f"confirmation rows: {n:,} are there, {enough}"]
    if value < quality:
        missing.insert(0, f"{quality - value:.3f} of quality, as measured")
    return Decision(None, best.name, why, missing, undecided)


def _best_or_cheaper(within: Sequence[Candidate], best: Candidate, margin: float) -> Decision:
    fine = [best] + [c for c in within if c is not best and difference_bound(c.confirm, best.confirm) > -margin]
    chosen = _cheapest(fine)
    undecided = {
        c.name: rows_for_margin(difference(c.confirm, best.confirm), margin, ALPHA)
        for c in within
        # the best's lead is under the margin by the opposite bound, so it may be, but was not shown to be
        if c not in fine and c.cost_per_1k < chosen.cost_per_1k and -difference_bound(best.confirm, c.confirm) > -margin
    }
    if chosen is best:
        why = (
            f"{best.name} is best with {best.confirm.value:.3f} on {best.confirm.n} confirmation rows, and no cheaper "
        )
        why += f"rung is shown to be within {margin:g} of it" if len(within) > 1 else "rung was measured"
    else:
        why = (
            f"{chosen.name} is the cheapest that is shown to be within {margin:g} of the best ({best.name}, "
            f"{best.confirm.value:.3f} on {best.confirm.n} confirmation rows)"
        )
    for name, rows in undecided.items():
        why += f"; {name} is cheaper and may be as good, " + (
            f"about {rows:,} confirmation rows would decide" if rows else "too close to the margin to decide"
        )
    return Decision(chosen.name, best.name, why, undecided=undecided)


def compare(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Every pair of rungs on the confirmation rows; p-values also corrected over all pairs (Holm).

    `mde` is the smallest true difference that 80 % of such samples would show.
    """
    pairs = list(combinations(candidates, 2))
    found = [difference(a.confirm, b.confirm) for a, b in pairs]
    corrected = holm([f.p for f in found])
    return [_row(a.name, b.name, f, p) for (a, b), f, p in zip(pairs, found, corrected, strict=True)]


def _row(a: str, b: str, found: Difference, corrected: float) -> dict[str, Any]:
    return {"a": a, "b": b, **found.as_dict(), "p_holm": corrected, "mde": detectable(found), "n": found.n}
