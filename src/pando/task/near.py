"""Near-duplicates: texts that differ by little enough that one gives the answer to the other away.

Texts are folded first (compatibility forms, case, punctuation and spaces; digits and symbols stay, for they may carry
the answer). Two are near-duplicates when the Jaccard similarity of their sets of 5-character shingles is at least
0.8, shingles that over a fifth of all texts share (a form, a signature, a fixed preamble) left out. Candidates come
from MinHash signatures in bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3) and each is
verified, so a pair that is reported is one; of pairs at the threshold itself about 1 in 500 is missed.

Nothing here depends on the order of the texts, on the machine, or on Python's salted `hash`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLD = 0.8
_WIDTH = 5  # characters of a shingle
_BANDS, _ROWS = 12, 4  # a pair of similarity s is a candidate with probability 1 - (1 - s^4)^12: 0.998 at 0.8
_WINDOW = 64  # members of a bucket that each member is paired with; more are alike only in a flood of look-alikes
_SAMPLE = 2000  # texts that tell which shingles are common
_COMMON, _LEAST_COMMON = 0.2, 20  # share and number of sampled texts that make a shingle common
_PRIME = np.uint64(0x100000001B3)
_BLOCK = 200_000  # shingles hashed at once


@dataclass(frozen=True)
class Likeness:
    """Which texts are alike.

    Attributes:
        classes: for each text the number of its class: the texts that are the same once folded.
        pairs: pairs of classes that are near-duplicates, the smaller number first.
    """

    classes: list[int]
    pairs: list[tuple[int, int]]


def find_alike(texts: Sequence[str]) -> Likeness:
    """Finds all repeats and near-duplicates among `texts`."""
    folded = [fold(text) for text in texts]
    distinct = sorted(set(folded), key=lambda text: hashlib.sha256(text.encode()).digest())
    number = {text: i for i, text in enumerate(distinct)}
    return Likeness([number[text] for text in folded], _near_pairs(distinct))


def fold(text: str) -> str:
    """The text without compatibility forms, case, punctuation and extra spaces; a text of punctuation alone stays."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.translate(_SPACES).split()) or " ".join(plain.split())


class _Spaces(dict[int, int]):
    """Translates punctuation, separators and control characters to a space, and remembers what it looked up."""

    def __missing__(self, code: int) -> int:
        self[code] = ord(" ") if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_SPACES = _Spaces()


def _near_pairs(texts: list[str]) -> list[tuple[int, int]]:
    if len(texts) < 2:
        return []
    common = _common_shingles(texts[:_SAMPLE])
    signatures = _signatures(texts, common)
    first, second = _candidates(signatures)
    # a cheap look at the signatures spares most of the exact comparisons: 0.2 is over three standard errors
    likely = (signatures[first] == signatures[second]).mean(axis=1) >= THRESHOLD - 0.2
    sets: dict[int, np.ndarray] = {}
    pairs = []
    for a, b in zip(first[likely].tolist(), second[likely].tolist(), strict=True):
        for i in (a, b):
            if i not in sets:
                sets[i] = _without(_shingles(texts[i]), common)
        shared = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        if shared >= THRESHOLD * (len(sets[a]) + len(sets[b]) - shared) and shared > 0:
            pairs.append((a, b))
    return pairs


def _shingles(text: str) -> np.ndarray:
    """Sorted distinct 64-bit hashes of the text's shingles; a shorter text is one shingle."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64) + np.uint64(1)
    width = min(_WIDTH, len(codes))
    hashes = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for i in range(width):
        hashes = hashes * _PRIME + codes[i : i + len(hashes)]
    # the finaliser of splitmix64: neighbouring shingles must not have neighbouring hashes
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashes = np.sort(hashes ^ (hashes >> np.uint64(31)))
    distinct: np.ndarray = hashes[np.append(True, hashes[1:] != hashes[:-1])]  # np.unique takes five times as long
    return distinct


def _common_shingles(texts: list[str]) -> np.ndarray:
    """What over a fifth of the texts share says nothing about whether two of them are the same."""
    least = max(_LEAST_COMMON, int(_COMMON * len(texts)))
    shingles, counts = np.unique(np.concatenate([_shingles(text) for text in texts]), return_counts=True)
    common: np.ndarray = shingles[counts > least]
    return common


def _without(shingles: np.ndarray, common: np.ndarray) -> np.ndarray:
    if not len(common):
        return shingles
    place = np.minimum(np.searchsorted(common, shingles), len(common) - 1)
    rare: np.ndarray = shingles[common[place] != shingles]
    return rare


def _signatures(texts: list[str], common: np.ndarray) -> np.ndarray:
    """MinHash signatures: uint32 [n, bands * rows]. A text of common shingles alone is like no other."""
    size = _BANDS * _ROWS
    drawn = hashlib.shake_256(b"pando minhash").digest(16 * size)
    multiply, add = np.frombuffer(drawn, dtype="<u8").reshape(2, size)
    multiply = multiply | np.uint64(1)
    signatures = np.empty((len(texts), size), dtype=np.uint32)
    for start, block in _blocks(texts, common):
        lengths = np.array([len(shingles) for shingles in block])
        full = np.flatnonzero(lengths)
        rows = start + np.arange(len(block))
        # texts without shingles of their own get signatures that agree with nobody's
        signatures[rows[lengths == 0]] = (rows[lengths == 0, None] * 7919 + np.arange(size)).astype(np.uint32)
        if not len(full):
            continue
        joined = np.concatenate(block)
        starts = np.concatenate([[0], np.cumsum(lengths[full])[:-1]])
        for k in range(size):
            mixed = ((joined * multiply[k] + add[k]) >> np.uint64(32)).astype(np.uint32)
            signatures[rows[full], k] = np.minimum.reduceat(mixed, starts)
    return signatures


def _blocks(texts: list[str], common: np.ndarray) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The shingles of consecutive texts, as many at a time as are hashed at once."""
    start, block, held = 0, [], 0
    for i, text in enumerate(texts):
        block.append(_without(_shingles(text), common))
        held += len(block[-1])
        if held >= _BLOCK or i == len(texts) - 1:
            yield start, block
            start, block, held = i + 1, [], 0


def _candidates(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs (i < j) that agree on a whole band."""
    n = len(signatures)
    found = [np.zeros(0, dtype=np.int64)]
    for band in np.split(signatures.astype(np.uint64), _BANDS, axis=1):
        keys = np.zeros(n, dtype=np.uint64)
        for column in band.T:
            keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for step in range(1, min(_WINDOW, n - 1) + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                break
            a, b = order[same], order[same + step]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
    pairs = np.unique(np.concatenate(found))
    return pairs // n, pairs % n
