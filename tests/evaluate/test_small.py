"""Minimal pairs and bits of answers, on a real model and on one whose likelihoods are known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pando.evaluate.pairs import KINDS, Pair, minimal_pairs
from pando.evaluate.small import gold_bits, pair_shares
from pando.interface import Scores


class Counting:
    """A model to which each "e" of a text costs one nat; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def score(self, requests: Any) -> list[Scores]:
        self.asked += requests
        return [
            Scores([-float(c.count("e")) for c in r.continuations], [False] * len(r.continuations), [1])
            for r in requests
        ]


def test_pairs_are_of_every_kind_different_and_repeat_by_seed() -> None:
    pairs = minimal_pairs(each=30)
    assert [kind for kind in KINDS if sum(pair.kind == kind for pair in pairs) != 30] == []
    assert all(pair.good != pair.bad for pair in pairs) and len({(p.good, p.bad) for p in pairs}) == len(pairs)
    assert pairs == minimal_pairs(each=30) != minimal_pairs(each=30, seed=1)
    assert not {pair.good for pair in pairs} & {pair.bad for pair in pairs}  # no sentence is right here and wrong there


def test_pairs_differ_in_one_place_only() -> None:
    for pair in minimal_pairs():
        good, bad = pair.good.split(), pair.bad.split()
        if pair.kind == "word order":
            assert sorted(good) == sorted(bad)
        elif pair.kind != "Python" and pair.kind != "negative polarity":
            assert len(good) == len(bad) and sum(a != b for a, b in zip(good, bad, strict=True)) == 1, pair


def test_shares_count_what_is_likelier() -> None:
    pairs = [Pair("a", "o", "e"), Pair("a", "e", "o"), Pair("b", "o", "ee"), Pair("b", "e", "ee")]
    model = Counting()
    found = pair_shares(model, pairs, context=[0])  # type: ignore[arg-type]
    assert {kind: (one.share, one.n) for kind, one in found.items()} == {"a": (0.5, 2), "b": (1, 2), "all": (0.75, 4)}
    assert found["all"].low < 0.75 < found["all"].high
    assert all(request.context == [0] for request in model.asked)


def test_bits_are_pooled_over_bytes() -> None:
    bits = gold_bits(Counting(), [("q", " eé"), ("r", " eee")])  # type: ignore[arg-type]
    assert bits.per_byte == pytest.approx(4 / math.log(2) / 8) and bits.n == 2


@pytest.mark.real
def test_real_model_knows_the_right_ones(real_model: Any) -> None:
    found = pair_shares(real_model, minimal_pairs(each=12))
    assert found["all"].share > 0.85, found
    good = gold_bits(real_model, [("The capital of France is", " Paris"), ("2 + 2 =", " 4")])
    bad = gold_bits(real_model, [("The capital of France is", " Pyris"), ("2 + 2 =", " 7")])
    assert good.per_byte < bad.per_byte
