"""Replayed ladders: 95 % intervals after the choice cover 93-98 %, "target met" is false in at most 5 %.

Worlds are simulated (accuracy, macro F1, both in groups) and real (scores of several classifiers on public data,
`replays.npz`). Every third ladder has no target, every third one that some rungs reach, every third one a hair above
what the best rung truly has, where each pass is false. Ladders on meaningless labels must find no rung better.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from replays import SIZES, Tally, World, replay, replay_null, simulated, stored

from pando.evaluate.statistics import FEW

LADDERS = 500  # for each kind of world and size
PER_WORLD = 25
KINDS = ("accuracy", "f1", "groups", "groups f1")
POOLS = Path(__file__).with_name("replays.npz")


def cell(worlds: list[World], n: int, kept: Path) -> Tally:
    """Replays of one kind and size, kept on disk so that an interrupted check goes on."""
    if kept.is_file():
        return Tally(**json.loads(kept.read_text()))
    tally, worlds = Tally(), [world for world in worlds if world.supports(n)]
    for seed in range(LADDERS):
        replay(worlds[seed // PER_WORLD % len(worlds)], n, seed, tally)
    aside = kept.with_suffix(".tmp")
    aside.write_text(json.dumps(asdict(tally)))
    aside.replace(kept)
    return tally


def problems(name: str, tally: Tally, few: bool) -> list[str]:
    """What is out of bounds, two standard errors of the replays themselves allowed. Where samples have `few` groups
    intervals may be wider than they need to be, never narrower."""

    def slack(rate: float, count: int) -> float:
        return 2 * math.sqrt(rate * (1 - rate) / max(count, 1))

    found = []
    low, high = 0.93 - slack(0.93, tally.intervals), 0.98 + slack(0.98, tally.intervals)
    if tally.coverage < low or (tally.coverage > high and not few):
        found.append(f"{name}: coverage {tally.coverage:.3f}")
    if tally.false_rate > 0.05:
        found.append(f"{name}: target falsely met in {tally.false_rate:.3f}")
    if tally.hard_rate > 0.05 + slack(0.05, tally.hard):
        found.append(f"{name}: out of reach, but met in {tally.hard_rate:.3f}")
    return found


def say(name: str, t: Tally) -> None:
    print(
        f"{name:>16}: {t.replays} ladders, coverage {t.coverage:.3f} of {t.intervals}, target met {t.met} of "
        f"{t.targets}, falsely {t.false_rate:.3f}, just out of reach {t.hard_rate:.3f}; "
        f"cheaper but truly behind the margin {t.margin_broken} of {t.margins}",
        flush=True,
    )


def null(work: Path) -> tuple[float, float]:
    """Shares of 500 ladders on meaningless labels that call a rung better, or pass one."""
    kept = work / "null.json"
    if not kept.is_file():
        worlds = [simulated("null", seed) for seed in range(5)]
        found = [replay_null(worlds[seed % 5], SIZES[seed % 4], seed) for seed in range(500)]
        kept.write_text(json.dumps([sum(column) / 500 for column in zip(*found, strict=True)]))
    better, passed = json.loads(kept.read_text())
    return better, passed


def main() -> int:
    work = Path(os.environ.get("VERIFY_WORK") or ".cache/verify/replays")
    work.mkdir(parents=True, exist_ok=True)
    worlds = {kind: [simulated(kind, seed) for seed in range(LADDERS // PER_WORLD)] for kind in KINDS}
    pools = list(stored(POOLS))
    worlds["real"] = [w for w in pools if w.groups is None]
    worlds["real groups"] = [w for w in pools if w.groups is not None]
    wrong: list[str] = []
    total = Tally()
    for kind, population in worlds.items():
        together = Tally()
        for n in SIZES:
            tally = cell(population, n, work / f"{kind.replace(' ', '_')}-{n}.json")
            say(f"{kind} {n}", tally)
            wrong += problems(f"{kind} {n}", tally, min(world.independent(n) for world in population) < FEW)
            together += tally
        say(kind, together)
        if not 0.93 <= together.coverage <= 0.98 or together.hard_rate > 0.05:
            wrong.append(f"{kind}: coverage {together.coverage:.3f}, out of reach but met {together.hard_rate:.3f}")
        total += together
    better, passed = null(work)
    print(f"meaningless labels: a rung called better in {better:.3f}, passed in {passed:.3f} of 500 ladders")
    if better > 0.07 or passed > 0.07:
        wrong.append("meaningless labels were taken for meaning")
    print("; ".join(wrong) or "every kind and size within bounds")
    print(
        f"{total.replays:,} ladders ({sum(len(w) for w in worlds.values())} worlds): coverage {total.coverage:.3f}, "
        f"target falsely met {total.false_rate:.3f}, and {total.hard_rate:.3f} where none reaches it"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
