"""What a skin makes of one input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pando.interface import Answer, Latency, Usage
from pando.task.rows import Output


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        value: the label, object or text; None where the skin abstained or the answer cannot be read.
        confidence: how likely the skin holds its answer to be right, between 0 and 1; None where it cannot tell.
        scores: probability of each label that was weighed (classify), else None.
        usage: tokens, over all that was asked of the base.
        latency: likewise; all zero for skins that ask nothing.
        abstained: whether an answer was withheld because its confidence is too low.
    """

    value: Output | None
    confidence: float | None = None
    scores: dict[str, float] | None = None
    usage: Usage = field(default_factory=Usage)
    latency: Latency = field(default_factory=Latency)
    abstained: bool = False


def spent(answers: Sequence[Answer]) -> tuple[Usage, Latency]:
    """Tokens and seconds of the answers to one input, which were computed side by side."""
    parts = [part for answer in answers for part in (answer if isinstance(answer, list) else [answer])]
    usage = sum((part.usage for part in parts), Usage())
    latencies = [part.latency for part in parts]
    return usage, Latency(
        queue=min((x.queue for x in latencies), default=0.0),
        first_token=min((x.first_token for x in latencies), default=0.0),
        total=max((x.total for x in latencies), default=0.0),
        compute=sum(x.compute for x in latencies),
    )
