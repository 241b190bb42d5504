"""Decisions on made-up measurements, and their error rates over replayed ladders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pando.adapt.decide import Candidate, climb_passes, compare, decide, over_limits
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import lower_bound
from pando.task.file import Target
from pando.task.metrics import Accuracy
from tests.evaluate.samples import scores

COST = {"floor": 0.001, "zero": 0.1, "probe": 0.05, "lora": 0.2}


def rung(name: str, right: int, n: int = 200, select: float | None = None, p95_ms: float = 100.0) -> Candidate:
    """Items are right from the first on, so that the worse of two is never right alone."""
    sample = Sample(scores([1] * right + [0] * (n - right)), Accuracy())
    return Candidate(name, right / n if select is None else select, sample, p95_ms, COST[name])


def test_sweep_takes_the_cheapest_that_is_shown_to_reach_the_target():
    found = decide("sweep", [rung("floor", 150), rung("probe", 180), rung("lora", 190)], Target(quality=0.8), 3)
    assert (found.chosen, found.best, found.missing) == ("probe", "lora", [])
    assert "the cheapest" in found.why
    assert "0.900 on 200 confirmation rows" in found.why


def test_a_measured_quality_above_the_target_is_not_enough():
    found = decide("sweep", [rung("floor", 100), rung("lora", 164)], Target(quality=0.8), 2)
    assert (found.chosen, found.best) == (None, "lora")
    assert "cannot decide" in found.why
    rows = found.undecided["lora"]
    assert rows > 200
    assert f"{rows:,}" in found.why
    assert "floor" not in found.undecided


def test_out_of_reach_says_how_much_is_missing():
    found = decide("sweep", [rung("floor", 100), rung("lora", 120)], Target(quality=0.9), 2)
    assert found.chosen is None
    assert found.undecided == {}
    assert found.missing == ["0.300 of quality"]


def test_more_rows_would_decide_as_promised():
    right, n, target = 164, 200, Target(quality=0.8)
    rows = decide("sweep", [rung("lora", right, n)], target, 1).undecided["lora"]
    draws = np.random.default_rng(0).binomial(rows, right / n, size=150)
    decided = [decide("sweep", [rung("lora", int(k), rows)], target, 1).chosen == "lora" for k in draws]
    assert 0.7 <= np.mean(decided) <= 0.9


def test_climb_stops_at_the_first_and_splits_the_error():
    target = Target(quality=0.8)
    near = next(r for r in range(160, 200) if lower_bound(rung("floor", r).confirm, 0.05) >= 0.8)
    assert climb_passes(rung("floor", near), target, 1)
    assert not climb_passes(rung("floor", near), target, 6)
    found = decide("climb", [rung("floor", near), rung("zero", 190), rung("probe", 199)], target, 6)
    assert found.chosen == "zero"  # probe is cheaper to call, but a climb would not have come to it
    assert "the first" in found.why
    assert "99.17 % confidence" in found.why


def test_an_overfitted_rung_does_not_block_the_others():
    """It comes first by its select quality and fails; a clear case passes all the same."""
    found = decide("sweep", [rung("lora", 150, select=0.99), rung("probe", 195, select=0.9)], Target(quality=0.85), 2)
    assert found.chosen == "probe"


def test_limits_of_latency_and_cost_come_first():
    slow, fast = rung("probe", 195, p95_ms=900), rung("lora", 190)
    assert decide("sweep", [slow, fast], Target(quality=0.8, p95_ms=400), 2).chosen == "lora"
    assert decide("sweep", [slow, fast], Target(quality=0.8, p95_ms=400, cost_per_1k=0.1), 2).chosen is None
    found = decide("climb", [slow], Target(quality=0.8, p95_ms=400), 1)
    assert (
        found.missing == over_limits(slow, Target(p95_ms=400)) == ["95 % of its calls take 900 ms, 400 ms are allowed"]
    )
    assert not climb_passes(slow, Target(quality=0.8, p95_ms=400), 1)
    assert decide("sweep", [slow, fast], Target(p95_ms=400), 2).chosen == "lora"


def test_without_a_target_the_cheapest_within_the_margin():
    candidates = [rung("floor", 700, 1000), rung("probe", 895, 1000), rung("lora", 900, 1000)]
    found = decide("sweep", candidates, Target(margin=0.02), 3)
    assert (found.chosen, found.best) == ("probe", "lora")
    assert decide("climb", candidates, Target(margin=0.02), 3) == found
    assert decide("sweep", candidates, Target(margin=0.3), 3).chosen == "floor"


def test_without_a_target_the_best_always_qualifies():
    found = decide("sweep", [rung("floor", 30, 50), rung("lora", 31, 50)], Target(), 2)
    assert found.chosen == "lora"
    assert found.undecided["floor"] is None or found.undecided["floor"] > 50
    assert "floor is cheaper and may be as good" in found.why
    assert decide("sweep", [rung("zero", 30)], Target(), 1).chosen == "zero"


def test_of_equal_rungs_the_cheaper_is_best():
    assert decide("sweep", [rung("lora", 40, 50), rung("probe", 40, 50)], Target(), 2).best == "probe"


def test_nothing_measured():
    found = decide("sweep", [], Target(), 3)
    assert (found.chosen, found.best) == (None, None)


def test_all_pairs_are_compared_and_corrected():
    found = compare([rung("floor", 150), rung("zero", 160), rung("lora", 190)])
    assert [(row["a"], row["b"]) for row in found] == [("floor", "zero"), ("floor", "lora"), ("zero", "lora")]
    assert all(row["p_holm"] >= row["p"] for row in found)
    assert found[1]["diff"] == pytest.approx(-0.2)
    assert 0 < found[0]["mde"] < 0.2
    assert compare([rung("floor", 150)]) == []


@pytest.fixture(scope="module")
def replays() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "verify" / "replays.py"
    spec = importlib.util.spec_from_file_location("replays", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["replays"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["accuracy", "f1", "groups"])
def test_replayed_ladders_cover_and_seldom_pass_falsely(replays, kind):
    """The short form of verify/check_replays.py."""
    tally, world = replays.Tally(), replays.simulated(kind, 1, 3000)
    for seed in range(60):
        replays.replay(world, (50, 100)[seed % 2], seed, tally)
    assert tally.replays == 60
    assert tally.intervals > 20
    assert tally.coverage >= 0.85
    assert tally.falsely_met <= 3
    assert tally.met >= 1


def test_meaningless_labels_have_no_winner(replays):
    world = replays.simulated("null", 1, 3000)
    found = [replays.replay_null(world, 60, seed) for seed in range(40)]
    assert sum(better for better, _ in found) <= 6
    assert sum(passed for _, passed in found) <= 6


def test_stored_pools_are_whole(replays):
    pools = list(replays.stored(Path(__file__).resolve().parents[2] / "verify" / "replays.npz"))
    assert {w.metric.name for w in pools} == {"accuracy", "macro_f1"}
    assert any(w.groups is not None for w in pools)
    assert all(len(w.truth) >= 2000 and w.answers.shape == (6, len(w.truth)) for w in pools)
