"""How much of a document repeats itself: lines, paragraphs and word n-grams, for many documents at once.

The measures are those of Rae et al. 2021 (Gopher), Table A1, counted as datatrove counts them. A longer n-gram can
only repeat where its first words do, so each length looks only at what the one before left over.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pando.corpus.words import I64, U64, Words, mixed

F64 = npt.NDArray[np.float64]


def repeated_pieces(pieces: pa.Array, owner: I64, documents: int) -> tuple[I64, I64]:
    """Pieces that stand earlier in the same document.

    Args:
        pieces: [P] lines or paragraphs.
        owner: [P] the document of each.

    Returns:
        [documents] how many repeat, and their characters.
    """
    coded = pc.dictionary_encode(pieces).indices.to_numpy().astype(np.int64)
    key = owner * (int(coded.max(initial=0)) + 1) + coded
    again = np.ones(len(key), bool)
    again[np.unique(key, return_index=True)[1]] = False
    length = pc.utf8_length(pieces).to_numpy(zero_copy_only=False)
    return (
        np.bincount(owner[again], minlength=documents),
        np.bincount(owner[again], weights=length[again], minlength=documents).astype(np.int64),
    )


def repeated_ngrams(words: Words, longest: int = 10) -> dict[str, F64]:
    """Characters in the commonest n-gram (n = 2, 3, 4) and in n-grams that came before (n = 5 .. longest).

    Returns:
        "top_n_gram" and "duplicate_n_grams": [D] characters.
    """
    documents = len(words.count)
    length = pc.utf8_length(words.word).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(length)])
    owner = words.document()
    code = mixed(words.code.astype(np.uint64) + np.uint64(1))
    hashes = code ^ mixed(owner.astype(np.uint64) + np.uint64(1 << 40))  # n-grams of two documents never meet
    at = np.arange(len(length))
    left = np.repeat(words.start[1:], words.count) - at
    found: dict[str, F64] = {}
    rolled = hashes
    for n in range(2, longest + 1):
        kept = left[at] >= n
        at, rolled = at[kept], rolled[kept]
        rolled = mixed(rolled * np.uint64(31) + code[at + n - 1])
        size = ends[at + n] - ends[at]
        order, first, count = _groups(rolled)
        if n <= 4:
            found[f"top_{n}_gram"] = _top(words, ends, owner, at, size + n - 1, order, first, count, n)
        else:
            found[f"duplicate_{n}_grams"] = _walked(at, size, order, first, count, owner, documents, n)
        many = np.repeat(count > 1, count)
        again = np.sort(order[many])
        at, rolled = at[again], rolled[again]
    return found


def _groups(hashes: U64) -> tuple[I64, I64, I64]:
    """(order that brings equal hashes together, where each group begins in it, its size)."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else np.zeros(0, int)
    return order, first, np.diff(np.append(first, len(order)))


def _top(
    words: Words,
    ends: I64,
    owner: npt.NDArray[np.int32],
    at: I64,
    size: I64,
    order: I64,
    first: I64,
    count: I64,
    n: int,
) -> F64:
    """Characters of the commonest n-gram times how often it stands; of several the earliest; once if none repeats."""
    best = np.zeros(len(words.count))
    alone = words.count >= n
    begin = words.start[:-1][alone]
    best[alone] = ends[begin + n] - ends[begin] + n - 1
    repeats = count > 1
    if repeats.any():
        group = np.minimum.reduceat(order, first)[repeats]  # the earliest place of each repeated n-gram
        times = count[repeats]
        document = owner[at[group]]
        ranked = np.lexsort((group, -times, document))
        chosen = ranked[np.concatenate([[True], document[ranked][1:] != document[ranked][:-1]])]
        best[document[chosen]] = times[chosen] * size[group[chosen]]
    return best


def _walked(
    at: I64, size: I64, order: I64, first: I64, count: I64, owner: npt.NDArray[np.int32], documents: int, n: int
) -> F64:
    """Characters (of words, not the spaces) of repeated n-grams on a walk that steps over each, as datatrove walks."""
    total = np.zeros(documents)
    many = np.repeat(count > 1, count)
    if not many.any():
        return total
    places = order[many]
    group = np.repeat(np.arange(len(count)), count)[many]
    walk = np.argsort(places)
    places, group = places[walk], group[walk]
    seen: set[int] = set()
    free = -1
    sizes, spots, owners = size[places].tolist(), at[places].tolist(), owner[at[places]].tolist()
    for spot, which, length, document in zip(spots, group.tolist(), sizes, owners, strict=True):
        if spot < free:  # inside an n-gram that was stepped over
            continue
        if which in seen:
            total[document] += length
            free = spot + n
        else:
            seen.add(which)
    return total
