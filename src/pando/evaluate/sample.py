"""The scores of one system on a list of items, resampled by the units that are independent of each other.

A unit is an item or, where items come in groups, a group. All samples over the same items share their resamples, so
that the difference of two of them is resampled as pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from pando.task.metrics import ItemScore, Metric

RESAMPLES = 4000
_CHUNK = 1_000_000  # numbers of a weight matrix held at once


class Sample:
    """Item scores and what their statistics need.

    Attributes:
        items: the score of each item, in the same order for all samples that are compared.
        metric: makes the quality from any multiset of items.
        codes: int [n], the unit of each item.
        n, units: how many items and how many units.
        seed: of the resamples.
    """

    def __init__(
        self, items: Sequence[ItemScore], metric: Metric, groups: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        if not items:
            raise ValueError("no items: nothing can be said about an empty sample")
        if groups is not None and len(groups) != len(items):
            raise ValueError(f"{len(groups)} groups for {len(items)} items")
        self.items, self.metric, self.seed = list(items), metric, seed
        self.n = len(items)
        self.codes = np.arange(self.n) if groups is None else np.unique(list(groups), return_inverse=True)[1]
        self.units = int(self.codes.max()) + 1

    @property
    def clustered(self) -> bool:
        """Whether some unit holds several items."""
        return self.units < self.n

    @cached_property
    def values(self) -> np.ndarray:
        """float [n], the value of each item."""
        return np.array([item["value"] for item in self.items], dtype=float)

    @cached_property
    def binary(self) -> bool:
        """Whether the quality is a share of items that are right."""
        return self.metric.kind != "corpus" and bool(np.isin(self.values, (0.0, 1.0)).all())

    @cached_property
    def bounded(self) -> bool:
        """Whether all values lie between 0 and 1."""
        return bool(((self.values >= 0) & (self.values <= 1)).all())

    @cached_property
    def value(self) -> float:
        """The quality."""
        return float(self.metric.aggregate(self.items))

    @cached_property
    def sizes(self) -> np.ndarray:
        """int [units], how many items each unit holds."""
        return np.bincount(self.codes, minlength=self.units)

    @property
    def independent(self) -> float:
        """How many units of equal size would count as much (Kish): `units` where all have one size."""
        return float(self.n**2 / (self.sizes.astype(float) ** 2).sum())

    @cached_property
    def resampled(self) -> np.ndarray:
        """float [RESAMPLES], the quality of samples drawn from the units with replacement."""
        return np.concatenate([self.of_weights(w) for w in _draws(self.units, self.seed)])

    @cached_property
    def left_out(self) -> np.ndarray:
        """float [units], the quality without each unit in turn (jackknife); needs two units."""
        step = max(1, _CHUNK // self.units)
        parts = []
        for start in range(0, self.units, step):
            weights = np.ones((min(step, self.units - start), self.units), dtype=np.float64)
            weights[np.arange(len(weights)), start + np.arange(len(weights))] = 0
            parts.append(self.of_weights(weights))
        return np.concatenate(parts)

    def of_weights(self, weights: np.ndarray) -> np.ndarray:
        """The quality when row b of `weights` [B, units] says how often each unit counts -> float [B]."""
        return self.metric.aggregate_counts(self.items, weights[:, self.codes] if self.clustered else weights)


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error from leave-one-out values [units]."""
    units = len(left_out)
    return float(np.sqrt((units - 1) / units * ((left_out - left_out.mean()) ** 2).sum()))


def _draws(units: int, seed: int) -> Iterator[np.ndarray]:
    """Weights [rows, units] of all resamples, in pieces that fit in memory."""
    if units * RESAMPLES <= 4 * _CHUNK:
        yield _small_draws(units, seed)
        return
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // units)
    for start in range(0, RESAMPLES, rows):
        yield _weights(generator, units, min(rows, RESAMPLES - start))


@lru_cache(maxsize=4)
def _small_draws(units: int, seed: int) -> np.ndarray:
    return _weights(np.random.default_rng(seed), units, RESAMPLES)


def _weights(generator: np.random.Generator, units: int, rows: int) -> np.ndarray:
    drawn = generator.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
