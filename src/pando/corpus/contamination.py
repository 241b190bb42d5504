"""Finds items of evaluations in documents: the share of an item's word n-grams that stand close together there.

Whoever knows the tasks makes the index (the command line does) and hands it in; this package imports nothing of them.
An item that was copied with one word in ten changed keeps about 0.73 of its 3-grams, so a threshold well below that
finds it, while unrelated texts share no more than stock phrases, which do not count.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pando.corpus.words import I64, U64, ngrams, plain
from pando.files import atomic_write, content_hash

LEAST = 4  # n-grams that must match, however short the item
COMMON = 8  # an n-gram of more items than this is a stock phrase ("which of the following is") and counts for none
_BITS = 24


@dataclass(frozen=True)
class Index:
    """The n-grams of protected items.

    Attributes:
        names: [I] what each item is called in the decision ledger.
        grams: [I] how many n-grams it has.
        hashes: [G] distinct n-grams, sorted; `start[g] : start[g + 1]` are the places of its items in `items`.
        n: words of an n-gram.
        short: items left out because they have too few words of their own.
    """

    names: tuple[str, ...]
    grams: I64
    hashes: U64
    start: I64
    items: npt.NDArray[np.int32]
    n: int
    short: int

    @property
    def hash(self) -> str:
        """Stands for the content."""
        return content_hash(content_hash(self.hashes.tobytes() + self.items.tobytes()) + "\n".join(self.names))

    def save(self, path: Path) -> None:
        """Writes the index for the tasks of a build to read."""
        buffer = io.BytesIO()
        names = np.array(self.names, dtype=np.str_)
        np.savez(
            buffer, names=names, grams=self.grams, hashes=self.hashes, start=self.start, items=self.items, n=self.n
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, buffer.getvalue())


def index(items: Iterable[tuple[str, str]], n: int = 3, shortest: int = 10) -> Index:
    """Indexes named texts; equal texts count once. Left out are those of fewer than `shortest` words, and those that
    consist of phrases which many have."""
    named: dict[str, str] = {}
    for name, text in items:
        named.setdefault(text, name)
    words = plain(pa.array(list(named), pa.large_string()))
    made, within = ngrams(words.hashes(), words.start, n)
    within &= (words.count >= shortest)[words.document()]
    pairs = np.empty(int(within.sum()), [("gram", np.uint64), ("item", np.int32)])
    pairs["gram"], pairs["item"] = made[within], words.document()[within]
    pairs = np.unique(pairs)
    _, where, many = np.unique(pairs["gram"], return_inverse=True, return_counts=True)
    pairs = pairs[many[where] <= COMMON]
    used = np.bincount(pairs["item"], minlength=len(named)) >= LEAST
    pairs = pairs[used[pairs["item"]]]
    pairs["item"] = (np.cumsum(used) - 1)[pairs["item"]]
    hashes, start = (
        np.unique(pairs["gram"], return_index=True) if len(pairs) else (np.zeros(0, np.uint64), np.zeros(0, int))
    )
    return Index(
        names=tuple(name for name, has in zip(named.values(), used, strict=True) if has),
        grams=np.bincount(pairs["item"], minlength=int(used.sum())).astype(np.int64),
        hashes=hashes.astype(np.uint64),
        start=np.append(start, len(pairs)).astype(np.int64),
        items=np.ascontiguousarray(pairs["item"], np.int32),
        n=n,
        short=int((~used).sum()),
    )


def scores(text: pa.Array, path: str) -> pa.Table:
    """For each document the item it holds most of, and how much: the share of the item's n-grams within twice its
    length. Fewer than four matching n-grams count as none."""
    known, table = _load(path)
    best = np.zeros(len(text), np.float32)
    which: list[str | None] = [None] * len(text)
    words = plain(text)
    made, within = ngrams(words.hashes(), words.start, known.n)
    maybe = np.flatnonzero(within & table[(made & np.uint64(2**_BITS - 1)).astype(np.int64)])
    if len(maybe) and len(known.hashes):
        spot = np.searchsorted(known.hashes, made[maybe])
        spot[spot == len(known.hashes)] = 0
        hit = known.hashes[spot] == made[maybe]
        maybe, spot = maybe[hit], spot[hit]
        many = known.start[spot + 1] - known.start[spot]
        at = np.repeat(maybe, many)
        gram = np.repeat(spot, many)
        within_gram = np.arange(len(at)) - np.repeat(np.cumsum(many) - many, many)
        item = known.items[known.start[gram] + within_gram]
        _best_windows(at, gram, item, words.document()[at], known, best, which)
    return pa.table(
        {"contamination": pa.array(best), "contamination_item": pa.array(which, pa.string())},
    )


def _best_windows(
    at: I64,
    gram: I64,
    item: npt.NDArray[np.int32],
    document: npt.NDArray[np.int32],
    known: Index,
    best: npt.NDArray[np.float32],
    which: list[str | None],
) -> None:
    order = np.lexsort((at, item, document))
    at, gram, item, document = at[order], gram[order], item[order], document[order]
    pair = document.astype(np.int64) << 32 | item
    first = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.zeros(0, int)
    size = np.diff(np.append(first, len(pair)))
    for begin, hits in zip(first[size >= LEAST].tolist(), size[size >= LEAST].tolist(), strict=True):
        total = int(known.grams[item[begin]])
        if hits < LEAST or min(hits, total) / total <= best[document[begin]]:
            continue
        found = _window(at[begin : begin + hits], gram[begin : begin + hits], 2 * (total + known.n))
        if found >= LEAST and found / total > best[document[begin]]:
            best[document[begin]] = found / total
            which[document[begin]] = known.names[item[begin]]


def _window(at: I64, gram: I64, width: int) -> int:
    """The most distinct n-grams within `width` words."""
    counts: dict[int, int] = {}
    most = left = 0
    places, grams = at.tolist(), gram.tolist()
    for right, name in enumerate(grams):
        counts[name] = counts.get(name, 0) + 1
        while places[right] - places[left] > width:
            gone = grams[left]
            counts[gone] -= 1
            if not counts[gone]:
                del counts[gone]
            left += 1
        most = max(most, len(counts))
    return most


@functools.lru_cache(1)
def _load(path: str) -> tuple[Index, npt.NDArray[np.bool_]]:
    with np.load(path) as file:
        known = Index(
            tuple(map(str, file["names"])),
            file["grams"],
            file["hashes"],
            file["start"],
            file["items"],
            int(file["n"]),
            0,
        )
    table = np.zeros(2**_BITS, bool)
    table[(known.hashes & np.uint64(2**_BITS - 1)).astype(np.int64)] = True
    return known, table
