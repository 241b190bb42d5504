"""From which confidence on a skin answers: as the task says, or so chosen that its answers are right often enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pando.evaluate.sample import Sample
from pando.evaluate.statistics import interval, lower_bound
from pando.skin import Prediction
from pando.task.file import Abstain
from pando.task.metrics import Accuracy, ItemScore

ALPHA = 0.05
_STEPS = 10  # thresholds that are tried, each at a tenth of the error


@dataclass(frozen=True)
class Answers:
    """What a skin answered to some rows; `groups` as for `Sample`."""

    predictions: Sequence[Prediction]
    items: Sequence[ItemScore]
    groups: Sequence[str] | None

    def above(self, threshold: float) -> Sample | None:
        """The values of what is answered with at least this confidence; None if nothing is."""
        kept = [i for i, p in enumerate(self.predictions) if p.value is not None and _confidence(p) >= threshold]
        if not kept:
            return None
        # accuracy is the mean of values, whatever the task's own metric makes of them
        groups = None if self.groups is None else [self.groups[i] for i in kept]
        return Sample([self.items[i] for i in kept], Accuracy(), groups)


def choose_threshold(wanted: Abstain, found: Answers) -> tuple[float | None, str]:
    """The threshold of a skin (None: nothing is withheld), and why.

    For a wanted precision, thresholds that answer all, 90 %, ... 10 % of the confirmation rows are tried. The lowest is
    taken whose mean value is shown to reach the precision, by a one-sided 95 % bound over all ten.
    """
    if wanted.below is not None:
        return wanted.below, f"answers of a confidence below {wanted.below:g} are withheld, as the task says"
    assert wanted.precision is not None
    confidences = sorted((_confidence(p) for p in found.predictions if p.value is not None), reverse=True)
    for step in range(_STEPS if confidences else 0):
        threshold = confidences[max(1, round(len(confidences) * (1 - step / _STEPS))) - 1]
        kept = found.above(threshold)
        bound = lower_bound(kept, ALPHA / _STEPS) if kept else -math.inf
        if kept and bound >= wanted.precision:
            shown = (
                f"of the {kept.n:,} of {len(found.items):,} confirmation rows that are answered {kept.value:.3f} are "
                f"right, over {bound:.3f} with {100 * (1 - ALPHA / _STEPS):g} % confidence"
            )
            if step == 0:
                return None, f"nothing need be withheld: {shown}"
            return threshold, f"answers of a confidence below {threshold:.3f} are withheld: {shown}"
    return None, f"no threshold is shown to reach a precision of {wanted.precision:g}: nothing is withheld"


def above_threshold(found: Answers, threshold: float | None) -> dict[str, Any]:
    """Share of the rows that are answered, and the mean value of those with its interval; JSON-able."""
    kept = found.above(-1.0 if threshold is None else threshold)
    share = (kept.n if kept else 0) / len(found.items)
    return {"coverage": share, **(interval(kept).as_dict() if kept else {"quality": None, "n": 0})}


def _confidence(prediction: Prediction) -> float:
    """An answer without a confidence is withheld by any threshold, as `Skin.answer` does it."""
    return -1.0 if prediction.confidence is None else prediction.confidence
