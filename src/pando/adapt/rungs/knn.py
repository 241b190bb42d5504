"""Nearest neighbours: the solved rows most like each input are shown before it, the most similar last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pando.adapt.rungs.calibration import calibrate
from pando.adapt.rungs.common import FIRST_HEAT, draft, index, race
from pando.adapt.rungs.tokens import call_tokens, some_shots
from pando.adapt.rungs.zero import Zero
from pando.interface import Capabilities
from pando.skin import Skin
from pando.task.file import Task

if TYPE_CHECKING:
    from pando.adapt.lab import Lab

SHOTS = (2, 4, 8)


class Knn:
    """See `Rung`."""

    name = "knn"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        if not capabilities.demonstrations:
            return "this model does not learn from rows that are shown to it"
        return Zero().fits(task, capabilities)

    def cost(self, task: Task, lab: Lab) -> float:
        """Demonstrations differ from input to input and are computed each time."""
        tried = sum(call_tokens(task, lab, shots) for shots in SHOTS) * FIRST_HEAT
        return tried + 3 * call_tokens(task, lab, SHOTS[-1]) * len(lab.select)

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """The best number of demonstrations, raced on select rows.

        Raises:
            DataError: not even the fewest fit the base's context.
        """
        rows = index(lab.train, lab.labels, shots=SHOTS[0])
        bare = draft(task, lab, self.name)
        shots = some_shots(bare, lab, SHOTS)
        drafts = [replace(bare, retrieval=replace(rows, shots=k)) for k in shots]
        best = race(task, lab, drafts)
        if task.kind != "classify":
            return [best]
        scored = calibrate(best, lab.evaluate(best), lab.select)
        return [replace(best, scoring=scored.scoring)]
