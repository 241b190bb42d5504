"""Evaluations that tell small models apart: minimal pairs, and bits per byte of the right answer.

Accuracy on ordinary benchmarks is at chance for a base of a few million parameters, long after it has begun to learn;
which of two like texts is likelier, and how many bits the right answer costs, move from the first steps on (OLMo's
"model ladder", arXiv 2412.04403, judges by the latter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pando.evaluate.pairs import KINDS, Pair, minimal_pairs
from pando.evaluate.statistics import wilson
from pando.interface import LanguageModel, ScoreRequest

_TAIL = 0.025  # of a two-sided 95 % interval, on each side


@dataclass(frozen=True)
class Share:
    """How many of `n` came out right: their share with its 95 % Wilson interval."""

    share: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: Sequence[bool]) -> Share:
        share = sum(right) / len(right)
        return cls(share, *wilson(share, len(right), _TAIL), len(right))


@dataclass(frozen=True)
class Bits:
    """Bits that right answers cost: a byte of their text, all answers pooled, and how many there were."""

    per_byte: float
    n: int


Context = str | Sequence[int]


def pair_shares(model: LanguageModel, pairs: Sequence[Pair] | None = None, context: Context = "\n") -> dict[str, Share]:
    """The share of minimal pairs whose right text is likelier, as a whole, than the wrong one.

    Args:
        model: one that can score.
        pairs: by default `minimal_pairs()`.
        context: what a text begins after; for a base trained here best the token that ends documents.

    Returns:
        One entry for each kind and "all".
    """
    pairs = minimal_pairs() if pairs is None else pairs
    scores = model.score([ScoreRequest(context=context, continuations=[pair.good, pair.bad]) for pair in pairs])
    right = [score.logprobs[0] > score.logprobs[1] for score in scores]
    kinds = list(dict.fromkeys(pair.kind for pair in pairs))
    found = {kind: Share.of([r for r, p in zip(right, pairs, strict=True) if p.kind == kind]) for kind in kinds}
    return found | {"all": Share.of(right)}


def gold_bits(model: LanguageModel, items: Sequence[tuple[str, str]]) -> Bits:
    """Bits per byte of right answers after their questions, over (question, answer) texts.

    Args:
        model: one that can score; it sees a question of any length by its end.
        items: an answer begins with the space that parts it from its question, if there is one.
    """
    requests = [ScoreRequest(context=q, continuations=[a], truncate="left") for q, a in items]
    nats = -sum(score.logprobs[0] for score in model.score(requests))
    return Bits(nats / math.log(2) / sum(len(answer.encode()) for _, answer in items), len(items))


__all__ = ["KINDS", "Bits", "Pair", "Share", "gold_bits", "minimal_pairs", "pair_shares"]
