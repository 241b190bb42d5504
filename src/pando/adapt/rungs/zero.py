"""Zero-shot: the instruction alone. classify: labels are scored, per token and calibrated; extract: an answer is
generated under the schema's grammar; generate: it is generated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pando.adapt.rungs.calibration import calibrate, content_free
from pando.adapt.rungs.common import draft, shortlist
from pando.adapt.rungs.tokens import MANY_LABELS, call_tokens
from pando.interface import Capabilities
from pando.skin import Skin
from pando.task.file import Task

if TYPE_CHECKING:
    from pando.adapt.lab import Lab
    from pando.skin.parts import Prompt


class Zero:
    """See `Rung`."""

    name = "zero"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        if task.kind == "classify":
            return None if capabilities.score else "this model gives no log-probabilities to score labels with"
        return None if capabilities.generate else "this model does not generate"

    def cost(self, task: Task, lab: Lab) -> float:
        """Two prompts on select rows, one on as many more."""
        return call_tokens(task, lab) * 3 * len(lab.select)

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """classify: with the labels listed or not, and with a blank for the answer where the base knows one, whichever
        makes select rows' labels likelier."""
        bare = draft(task, lab, self.name)
        if task.kind != "classify":
            return [bare]
        bare = replace(bare, retrieval=shortlist(lab))
        prompts = _prompts(bare.prompt, lab.model.capabilities)
        if len(lab.labels) <= MANY_LABELS:
            prompts += [replace(prompt, options=True) for prompt in prompts]
        drafts = [replace(bare, prompt=prompt) for prompt in prompts]
        found = [calibrate(d, lab.evaluate(d), lab.select, content_free(d, lab)) for d in drafts]
        order = sorted(range(len(drafts)), key=lambda i: -found[i].likelihood)
        return [replace(drafts[i], scoring=found[i].scoring) for i in order]


def _prompts(prompt: Prompt, capabilities: Capabilities) -> list[Prompt]:
    """The ways to ask: for what comes after the input, by a base that writes; and for what fills a blank behind it."""
    found = [prompt] if capabilities.generate else []
    blank = capabilities.blank
    if blank is not None:
        found.append(replace(prompt, blank=blank, lead=f"{blank} " if capabilities.generate else ""))
    return found
