"""The settings a skin is made of: plain frozen records, each a section of `skin.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pando.interface import Pooling
from pando.task.rows import Output

MethodName = Literal["floor", "score", "generate", "probe", "search"]
Baseline = Literal["majority", "tfidf", "constant", "copy", "lead"]


@dataclass(frozen=True)
class Prompt:
    """What the base is told.

    Attributes:
        instruction: the task in words.
        inputs: names of the input fields.
        options: whether the labels are listed.
        blank: stands behind the input for what is asked (an encoder's mask, an encoder-decoder's sentinel).
        lead: what the base writes before its answer.
    """

    instruction: str
    inputs: tuple[str, ...]
    options: bool = False
    blank: str = ""
    lead: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A solved row that is shown to the base."""

    inputs: Mapping[str, str]
    output: Output


@dataclass(frozen=True)
class Scoring:
    """How log-probabilities of labels become probabilities: softmax of scale * (score - prior).

    Attributes:
        per_token: a label's score is the mean over its tokens, not the sum.
        end: the end of the turn belongs to the label, so that a label that begins another is judged fairly.
        prior: what the base gives to each label whatever the input, on the scale of the scores.
        scale: sharpens (over 1) or flattens the probabilities, never changes their order.
    """

    per_token: bool = True
    end: bool = False
    prior: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated: likeliest tokens, at most so many, until one of the stop strings."""

    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """Which hidden states a probe reads: layers laid end to end, pooled, of the input alone or within its prompt."""

    layers: tuple[int, ...]
    pooling: Pooling = "mean"
    prompted: bool = False
