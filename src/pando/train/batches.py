"""Which examples go into which step: shuffled by a seed, of like length within a batch, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_POOL = 16  # batches sorted by length together; larger pads less and mixes less


def length_buckets(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """One epoch of batches of indices; every index appears once. The same seed and epoch give the same order."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    for at in range(0, len(order), batch_size * _POOL):
        pool = sorted(order[at : at + batch_size * _POOL].tolist(), key=lambda i: lengths[i])
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        for i in random.permutation(len(batches)):
            yield batches[i]
