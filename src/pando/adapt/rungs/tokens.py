"""How many tokens calls take: what fits the base's context, and in which order rungs are worth climbing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pando.errors import DataError
from pando.skin import Skin
from pando.skin.render import answer_text, context
from pando.task.file import Task

if TYPE_CHECKING:
    from pando.adapt.lab import Lab

MANY_LABELS = 20  # above, labels are shortlisted before they are scored
SHORTLIST = 10
_COUNTED = 200  # training rows whose tokens are counted
_TURN = 10  # tokens that a template puts around a row
_WRITTEN = 8  # a token that is written takes the time of so many that are read


def call_tokens(task: Task, lab: Lab, shots: int = 0) -> float:
    """About how many tokens a call forwards beyond what all calls share, with so many demonstrations of its own."""
    inputs, outputs = _counts(lab)
    row = _mean(inputs) + _mean(outputs) + _TURN
    if task.kind == "classify":
        branches = SHORTLIST if len(lab.labels) > MANY_LABELS else len(lab.labels)
        return (shots + 1) * row + branches * _mean(outputs)
    return (shots + 1) * row + _WRITTEN * _mean(outputs)


def query_tokens(lab: Lab) -> float:
    """Tokens of an input, the mean of the first training rows."""
    return _mean(_counts(lab)[0])


def answer_room(lab: Lab) -> int:
    """Most tokens that an answer may take, by the training rows'."""
    longest = max((answer_text(e.output) for e in lab.train if e.output is not None), key=len)
    return round(1.25 * lab.model.count_tokens(longest)) + _TURN


def shots_that_fit(bare: Skin, lab: Lab, wanted: Sequence[int]) -> list[int]:
    """Those numbers of demonstrations that leave room for all but the longest inputs and their answers."""
    inputs, outputs = _counts(lab)
    rows = sorted(a + b + _TURN for a, b in zip(inputs, outputs, strict=True))
    middle, long = rows[len(rows) // 2], rows[(9 * len(rows)) // 10]
    head = lab.model.count_tokens(context(bare, lab.model, dict.fromkeys(bare.prompt.inputs, "")))
    room = lab.model.context_length - head - long
    return [shots for shots in wanted if shots * middle <= room and shots <= len(lab.train)]


def some_shots(bare: Skin, lab: Lab, wanted: Sequence[int]) -> list[int]:
    """As `shots_that_fit`.

    Raises:
        DataError: none fits.
    """
    fitting = shots_that_fit(bare, lab, wanted)
    if not fitting:
        raise DataError(
            f"{wanted[0]} training rows do not fit the base's {lab.model.context_length} tokens beside an input: leave "
            "this rung out"
        )
    return fitting


def _counts(lab: Lab) -> tuple[list[int], list[int]]:
    """Tokens of inputs and of outputs of the first training rows."""
    rows = lab.train[:_COUNTED]
    return (
        [lab.model.count_tokens(row.text) for row in rows],
        [lab.model.count_tokens(answer_text(row.output or "")) for row in rows],
    )


def _mean(counts: Sequence[int]) -> float:
    return sum(counts) / len(counts)
