"""How much of each source the training split holds, and in which order: seeded hashes, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pando.corpus.config import Config
from pando.corpus.words import I64, U64, mixed, mixed_number
from pando.errors import DataError

_VALIDATION = np.uint64(0x56414C4944415445)


@dataclass(frozen=True)
class Mixed:
    """The documents of both splits in their final order; a document may stand in `train` several times.

    Attributes:
        train, validation: document numbers.
        asked, got: tokens of each source in the training split, planned and reached.
        repeats: how often each source is read.
    """

    train: I64
    validation: I64
    asked: list[int]
    got: list[int]
    repeats: list[float]


def mix(config: Config, documents: I64, source: I64, tokens: I64, content: U64) -> Mixed:
    """Holds back the validation split and mixes the rest.

    Args:
        documents: [K] numbers of the kept documents.
        source, tokens: [K] of each.
        content: [K] 64 bits of the hash of its text.

    Raises:
        DataError: no document is left to train on.
    """
    if not len(documents):
        raise DataError("no document is left")
    held = _held_back(config, source, content)
    order = mixed(content ^ mixed_number(config.seed + 1))
    available = np.bincount(source[~held], tokens[~held], len(config.sources)).astype(np.int64)
    asked = _targets(config, available)
    entries, keys, got, repeats = [], [], [], []
    for number in range(len(config.sources)):
        mine = np.flatnonzero((source == number) & ~held)
        mine = mine[np.lexsort((documents[mine], order[mine]))]
        want = min(asked[number], int(available[number] * config.mixture.max_repeat))
        full = want // int(available[number]) if available[number] else 0
        ends = np.cumsum(tokens[mine])
        # the documents of the last, partial round: as many as come closest to what is asked
        rest = want - full * int(available[number])
        more = int(np.searchsorted(ends - tokens[mine] / 2, rest, "right")) if rest else 0
        more = min(max(more, 1 if not full and len(mine) else 0), len(mine))
        for round_, part in enumerate([mine] * full + [mine[:more]]):
            entries.append(part)
            keys.append(mixed(order[part] ^ mixed_number(round_ + 2)))
        got.append(full * int(available[number]) + (int(ends[more - 1]) if more else 0))
        repeats.append(got[-1] / int(available[number]) if available[number] else 0.0)
    chosen, key = np.concatenate(entries), np.concatenate(keys)
    validation = np.flatnonzero(held)
    return Mixed(
        documents[chosen[np.lexsort((documents[chosen], key))]],
        documents[validation[np.lexsort((documents[validation], order[validation]))]],
        asked,
        got,
        repeats,
    )


def _held_back(config: Config, source: I64, content: U64) -> npt.NDArray[np.bool_]:
    """[K] by content hash, so that adding documents moves none and equal texts stay together; of a source of ten or
    more at least one."""
    if not config.validation:
        return np.zeros(len(source), bool)
    draw = mixed(content ^ _VALIDATION)
    held = (draw >> np.uint64(11)).astype(np.float64) / 2.0**53 < config.validation
    for number in range(len(config.sources)):
        mine = source == number
        if np.count_nonzero(mine) >= 10 and not held[mine].any():
            held |= draw == draw[mine].min()
    return np.asarray(held)


def _targets(config: Config, available: I64) -> list[int]:
    weights: list[Any] = [source.weight for source in config.sources]
    if not available.sum():
        raise DataError("no document is left to train on: keep more of them, or hold fewer back (validation)")
    share = np.array(available if weights[0] is None else weights, np.float64)
    total = config.mixture.tokens or int(available.sum())
    return [round(total * float(part)) for part in share / share.sum()]
