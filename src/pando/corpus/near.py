"""Near-duplicates by MinHash and bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3).

Two documents whose word n-grams have Jaccard similarity s share at least one of b bands of r permutations with
probability 1 - (1 - s^r)^b. Those that share one are linked; of each connected group the first in file order stays.
Bands are grouped one by one, each in ranges of its hashes, so that memory does not grow with the number of bands.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pando.corpus import engine
from pando.corpus.parts import read_table
from pando.corpus.words import I64, U64, digest, mixed, normal
from pando.files import atomic_write

RANGE_ROWS = 4_000_000  # documents that one task groups


def bands(text: pa.Array, count: int, rows: int, ngram: int, seed: int) -> pa.Table:
    """A hash of each band: columns band_0 .. of uint64, one row a document."""
    words = normal(text)
    signature = engine.minhash(words, count * rows, ngram, seed).reshape(len(text), count, rows)
    made = np.zeros((len(text), count), np.uint64)
    for place in range(rows):
        made = mixed(made * np.uint64(31) + signature[:, :, place])
    for bare in np.flatnonzero(pc.equal(words, "").to_numpy(zero_copy_only=False)):  # no word: like its copies alone
        made[bare] = np.frombuffer(digest(text[bare].as_py().encode()), "<u8")[0]
    return pa.table({f"band_{band}": pa.array(np.ascontiguousarray(made[:, band])) for band in range(count)})


def link(task: dict[str, Any]) -> dict[str, Any]:
    """Links the documents that share a hash of one band: pairs (first, other) of document numbers, in `out`.

    The task has `band`, `parts` (path or None for documents without bands, rows), `alive` (which documents count),
    and `range` of `ranges`.
    """
    column = _column(task["parts"], f"band_{task['band']}")
    alive = np.load(task["alive"], mmap_mode="r")
    within = np.asarray(alive, bool)
    if task["ranges"] > 1:
        within = within & ((column >> np.uint64(33)) * np.uint64(task["ranges"]) >> np.uint64(31) == task["range"])
    documents = np.flatnonzero(within)
    hashes = column[documents]
    order = np.argsort(hashes, kind="stable")
    hashes, documents = hashes[order], documents[order]
    again = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    begins = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else again
    group = begins[np.searchsorted(begins, again, "right") - 1] if len(again) else again
    save_array(Path(task["out"]), np.stack([documents[group], documents[again]], 1).astype(np.int64))
    return {"links": len(again)}


def groups(links: Sequence[npt.NDArray[np.int64]], documents: int) -> I64:
    """[documents] the first document of the group that each belongs to; itself where it is alone."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([np.zeros((0, 2), np.int64), *links])
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(documents, documents))
    _, label = connected_components(graph, directed=False)
    first = np.full(int(label.max(initial=-1)) + 1, documents, np.int64)
    np.minimum.at(first, label, np.arange(documents))
    return np.asarray(first[label])


def shared_bands(parts: Sequence[Any], count: int, one: I64, other: I64) -> npt.NDArray[np.float32]:
    """The share of bands that pairs of documents have in common; 0 for a pair linked only through others."""
    same = np.zeros(len(one), np.float32)
    for band in range(count):
        column = _column(parts, f"band_{band}")
        same += column[one] == column[other]
    return same / np.float32(count)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Writes a numpy file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def _column(parts: Sequence[Any], name: str) -> U64:
    made = [
        np.zeros(rows, np.uint64) if path is None else read_table(path, [name]).column(0).to_numpy()
        for path, rows in parts
    ]
    return np.concatenate([np.zeros(0, np.uint64), *made])
