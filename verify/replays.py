"""Ladders replayed without a model: their rungs' answers come from a pool of stored ones, or from a simulation.

A world is a population of items with the answers of several rungs, whose true qualities are known. A replay draws
select, confirmation and test items from it, decides as `pando adapt` does, and looks at what it claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pando.adapt.decide import Candidate, climb_passes, compare, decide
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import interval
from pando.task.file import Target
from pando.task.metrics import Accuracy, ItemScore, MacroF1, Metric

SIZES = (50, 100, 250, 500, 1000)
MARGIN = 0.02
TESTS = 4  # test splits drawn after each choice, each of which might have been the one
COSTS = (0.001, 0.1, 0.2, 0.5, 0.08, 0.12)  # floor, zero, few, knn, probe, lora: the order of a ladder
TRIES = (1, 1, 6, 4, 1, 3)  # candidates that a rung compares on select items


@dataclass(frozen=True)
class World:
    """A population: what is right, what each rung answers, which items belong together.

    Attributes:
        name: for the table.
        metric: of the task.
        truth: int [N], the wanted label of each item.
        answers: int [K, N], the rungs' labels.
        groups: int [N], or None.
        true: float [K], each rung's quality over the whole population.
    """

    name: str
    metric: Metric
    truth: np.ndarray
    answers: np.ndarray
    groups: np.ndarray | None = None
    true: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        everything = np.arange(len(self.truth))
        true = [self.metric.aggregate(self._items(rung, everything)) for rung in range(len(self.answers))]
        object.__setattr__(self, "true", np.array(true))
        if self.groups is not None:
            order = np.argsort(self.groups, kind="stable")
            members = np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1)
            object.__setattr__(self, "_members", members)

    def independent(self, n: int) -> float:
        """About how many groups of equal size count as much as `n` items (Kish), or `n` where there are no groups."""
        if self.groups is None:
            return n
        sizes = np.bincount(self.groups).astype(float)
        return float(n * sizes.sum() / (sizes**2).sum())

    def supports(self, n: int) -> bool:
        """Whether `n` items are enough for this metric to mean something: macro F1 needs five units of each label."""
        sizes = np.bincount(self.groups) if self.groups is not None else np.ones(1)
        return self.metric.name != "macro_f1" or n / sizes.mean() >= 5 * len(np.unique(self.truth))

    def samples(self, generator: np.random.Generator, n: int, rungs: range | list[int]) -> list[Sample]:
        """Scores of the rungs on `n` items (about: whole groups) drawn with replacement, paired."""
        groups: list[str] | None = None
        if self.groups is None:
            index = generator.integers(len(self.truth), size=n)
        else:
            members = self._members  # type: ignore[attr-defined]
            mean = len(self.truth) / len(members)
            drawn = [members[g] for g in generator.integers(len(members), size=max(2, round(n / mean)))]
            index = np.concatenate(drawn)
            groups = [str(g) for g, one in enumerate(drawn) for _ in one]
        return [Sample(self._items(rung, index), self.metric, groups) for rung in rungs]

    def _items(self, rung: int, index: np.ndarray) -> list[ItemScore]:
        pairs = zip(self.truth[index].tolist(), self.answers[rung, index].tolist(), strict=True)
        return [{"value": float(t == a), "stats": [t, a]} for t, a in pairs]


@dataclass
class Tally:
    """What replays of one kind claimed, and how often it held."""

    replays: int = 0
    intervals: int = 0
    covered: int = 0
    targets: int = 0
    met: int = 0
    falsely_met: int = 0
    hard: int = 0
    hard_falsely_met: int = 0
    margins: int = 0
    margin_broken: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def coverage(self) -> float:
        return self.covered / max(self.intervals, 1)

    @property
    def false_rate(self) -> float:
        return self.falsely_met / max(self.targets, 1)

    @property
    def hard_rate(self) -> float:
        """False among replays whose target lies a hair above the true quality of every rung."""
        return self.hard_falsely_met / max(self.hard, 1)


def replay(world: World, n: int, seed: int, tally: Tally) -> None:
    """One ladder: by turns without a target, with one that some rungs reach, and with one just out of reach."""
    generator = np.random.default_rng([seed, n])
    kind = seed % 3
    mode = "climb" if seed // 3 % 2 else "sweep"
    target = Target(margin=MARGIN)
    if kind == 1:
        target = Target(quality=float(np.clip(world.true.max() - generator.uniform(0.0, 0.15), 0, 1)))
    elif kind == 2:
        target = Target(quality=float(np.clip(world.true.max() + 1e-4, 0, 1)))
    chosen, best = _choose(world, n, mode, target, generator)
    tally.replays += 1
    if target.quality is not None:
        false = chosen is not None and bool(world.true[chosen] < target.quality)
        tally.targets += 1
        tally.met += chosen is not None
        tally.falsely_met += false
        tally.hard += kind == 2
        tally.hard_falsely_met += false and kind == 2
    elif chosen != best:
        tally.margins += 1
        tally.margin_broken += bool(world.true[chosen] < world.true[best] - MARGIN)
    for _ in range(TESTS if chosen is not None else 0):
        found = interval(world.samples(generator, n, [chosen])[0])
        tally.intervals += 1
        tally.covered += bool(found.low - 1e-9 <= world.true[chosen] <= found.high + 1e-9)


def _choose(world: World, n: int, mode: str, target: Target, generator: np.random.Generator) -> tuple[int | None, int]:
    rungs = range(len(world.answers))
    confirm = world.samples(generator, n, rungs)
    candidates = []
    for rung in rungs:
        # the rung's own choice among candidates makes its select quality look better than it is
        select = max(world.samples(generator, n, [rung])[0].value for _ in range(TRIES[rung]))
        candidates.append(Candidate(str(rung), select, confirm[rung], 1.0, COSTS[rung]))
        if mode == "climb" and climb_passes(candidates[-1], target, len(rungs)):
            break
    found = decide("climb" if mode == "climb" else "sweep", candidates, target, len(rungs))
    return None if found.chosen is None else int(found.chosen), int(found.best or 0)


def replay_null(world: World, n: int, seed: int) -> tuple[bool, bool]:
    """A ladder on labels that mean nothing: is any rung called better than another, does any reach above chance?"""
    generator = np.random.default_rng([seed, n, 7])
    select, confirm = (world.samples(generator, n, range(len(world.answers))) for _ in range(2))
    pairs = zip(select, confirm, strict=True)
    candidates = [Candidate(str(k), s.value, c, 1.0, COSTS[k]) for k, (s, c) in enumerate(pairs)]
    target = Target(quality=float(world.true.max()) + 1e-4)
    passed = decide("sweep", candidates, target, len(candidates)).chosen is not None
    return any(row["p_holm"] < 0.05 for row in compare(candidates)), passed


def simulated(kind: str, seed: int, population: int = 40_000) -> World:
    """A population with random qualities: "accuracy", "f1", "groups" (accuracy), "groups f1" or "null"."""
    generator = np.random.default_rng([seed, 99])
    labels = 2 if kind == "null" else int(generator.integers(2, 6))
    prior = generator.dirichlet(np.full(labels, 8.0))
    if kind == "null":
        prior = np.full(labels, 1 / labels)
    truth = generator.choice(labels, size=population, p=prior)
    groups, shared = None, np.zeros(population)
    if kind.startswith("groups"):
        sizes = 1 + generator.poisson(generator.uniform(1, 5), size=population)
        groups = np.repeat(np.arange(population), sizes)[:population]
        shared = generator.normal(size=population)[groups]
    hardness = generator.normal(size=population)
    within = generator.uniform(0, 0.4) if groups is not None else 0.0  # share of the spread that a group has in common
    best = generator.uniform(0.6, 0.95)
    answers = []
    for _ in COSTS:
        quality = float(np.clip(best + generator.normal(0, 0.06), 0.4, 0.985)) if kind != "null" else 1 / labels
        own = generator.normal(size=population)
        rest = 1 - within
        latent = np.sqrt(within) * shared + np.sqrt(0.4 * rest) * hardness + np.sqrt(0.6 * rest) * own
        if kind == "null":
            answers.append(generator.choice(labels, size=population, p=prior))
            continue
        right = latent < np.quantile(latent, quality)
        others = (truth + generator.integers(1, labels, size=population)) % labels
        answers.append(np.where(right, truth, others))
    metric: Metric = MacroF1() if kind.endswith("f1") else Accuracy()
    return World(kind, metric, truth, np.array(answers), groups)


def stored(path: Path) -> Iterator[World]:
    """The stored score matrices, each for accuracy and for macro F1."""
    with np.load(path) as file:
        for name in sorted({key.partition(".")[0] for key in file}):
            truth, answers = file[f"{name}.truth"].astype(int), file[f"{name}.answers"].astype(int)
            groups = file[f"{name}.groups"].astype(int) if f"{name}.groups" in file else None
            for metric in (Accuracy(), MacroF1()):
                if metric.name == "accuracy" or truth.max() < 10:
                    yield World(name, metric, truth, answers[: len(COSTS)], groups)
