"""The rungs of the ladder, each one way to adapt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pando.adapt.rungs.embed import Embed, Hybrid
from pando.adapt.rungs.few import Few
from pando.adapt.rungs.floor import Floor
from pando.adapt.rungs.knn import Knn
from pando.adapt.rungs.lora import Lora
from pando.adapt.rungs.probe import Probe
from pando.adapt.rungs.zero import Zero
from pando.interface import Capabilities
from pando.skin import Skin
from pando.task.file import Task

if TYPE_CHECKING:
    from pando.adapt.lab import Lab


class Rung(Protocol):
    """One way to adapt.

    Attributes:
        name: as in a task's `rungs`.
    """

    @property
    def name(self) -> str: ...

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why the rung cannot be tried with this task and model, or None if it can."""

    def cost(self, task: Task, lab: Lab) -> float:
        """What building it and evaluating it on development rows takes, roughly, in tokens that the base reads: the
        ladder climbs in this order."""

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """Skins built from `lab.train` and chosen on `lab.select`, the best first.

        Raises:
            PandoError: it cannot be built from this task's rows.
        """


_ALL: tuple[Rung, ...] = (Floor(), Zero(), Few(), Knn(), Probe(), Embed(), Hybrid(), Lora())
RUNGS: dict[str, Rung] = {rung.name: rung for rung in _ALL}
