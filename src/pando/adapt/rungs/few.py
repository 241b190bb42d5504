"""Few-shot: the same solved rows before every input, so that their part of the prompt is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pando.adapt.rungs.calibration import calibrate, content_free
from pando.adapt.rungs.common import FIRST_HEAT, demonstration, draft, race, shortlist
from pando.adapt.rungs.tokens import call_tokens, some_shots
from pando.adapt.rungs.zero import Zero
from pando.interface import Capabilities
from pando.skin import Skin
from pando.task.file import Task
from pando.task.rows import Example

if TYPE_CHECKING:
    from pando.adapt.lab import Lab

SHOTS = (2, 4, 8, 16)
DRAWS = {"classify": 3, "extract": 2, "generate": 2}  # of each number of shots; what is written takes longer


class Few:
    """See `Rung`."""

    name = "few"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        if not capabilities.demonstrations:
            return "this model does not learn from rows that are shown to it"
        return Zero().fits(task, capabilities)

    def cost(self, task: Task, lab: Lab) -> float:
        """A race of draws, whose demonstrations are computed once each, and development rows for the winner."""
        return call_tokens(task, lab) * (2 * len(SHOTS) * DRAWS[task.kind] * FIRST_HEAT + 2 * len(lab.select))

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """The best of several draws and orders of 2 to 16 rows, raced on select rows.

        Raises:
            DataError: not even the fewest fit the base's context.
        """
        bare = replace(draft(task, lab, self.name), retrieval=shortlist(lab))
        random = np.random.default_rng(lab.seed)
        drafts = [
            replace(bare, demonstrations=tuple(map(demonstration, draw(lab.train, shots, random, task))))
            for shots in some_shots(bare, lab, SHOTS)
            for _ in range(DRAWS[task.kind])
        ]
        best = race(task, lab, drafts)
        if task.kind != "classify":
            return [best]
        scored = calibrate(best, lab.evaluate(best), lab.select, content_free(best, lab))
        return [replace(best, scoring=scored.scoring)]


def draw(rows: Sequence[Example], shots: int, random: np.random.Generator, task: Task) -> list[Example]:
    """So many rows of at most median length (long ones make every call dearer), the labels taking turns, shuffled."""
    middle = float(np.median([len(row.text) for row in rows]))
    short = [row for row in rows if len(row.text) <= middle]
    groups: dict[str, list[Example]] = {}
    for i in random.permutation(len(short)):
        label = str(short[i].output) if task.kind == "classify" else ""
        groups.setdefault(label, []).append(short[i])
    taken: list[Example] = []
    while len(taken) < shots and any(groups.values()):
        taken += [group.pop() for group in groups.values() if group]
    chosen = taken[:shots]
    return [chosen[i] for i in random.permutation(len(chosen))]
