"""TF-IDF vectors of words and characters, without scikit-learn at inference and equal to its numbers.

Words are single ones and pairs (two letters or more each), characters are runs of 2 to 4 within a word and its
margins. Frequencies count as 1 + ln(tf), rarity as ln((1 + n) / (1 + df)) + 1; both blocks have unit length, as in
`TfidfVectorizer(sublinear_tf=True)` with `ngram_range=(1, 2)` and with `analyzer="char_wb", ngram_range=(2, 4)`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

_WORD = re.compile(r"(?u)\b\w\w+\b")
_SPACES = re.compile(r"\s\s+")
_RUNS = (2, 3, 4)


@dataclass(frozen=True, eq=False)
class TfIdf:
    """A fitted vectoriser.

    Attributes:
        words: the words and pairs, sorted; the first columns.
        characters: the runs of characters, sorted; the columns after.
        idf: rarity of each column, float32 [words + characters].
    """

    words: tuple[str, ...]
    characters: tuple[str, ...]
    idf: np.ndarray

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TfIdf:
        """Learns the vocabulary and its rarity from texts."""
        frequencies: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for text in texts:
            for frequency, terms in zip(frequencies, _both(text), strict=True):
                frequency.update(set(terms))
        words, characters = (tuple(sorted(frequency)) for frequency in frequencies)
        df = [frequencies[0][t] for t in words] + [frequencies[1][t] for t in characters]
        idf = np.log((1 + len(texts)) / (1 + np.array(df, dtype=np.float64))) + 1
        return cls(words, characters, idf.astype(np.float32))

    def __call__(self, texts: Sequence[str]) -> Any:
        """scipy CSR matrix, float64 [n, words + characters]."""
        from scipy.sparse import csr_matrix

        columns: list[np.ndarray] = []
        values: list[np.ndarray] = []
        ends = [0]
        for text in texts:
            for index, terms in zip(self._index, _both(text), strict=True):
                column, value = self._block(Counter(index[t] for t in terms if t in index))
                columns.append(column)
                values.append(value)
            ends.append(ends[-1] + len(columns[-1]) + len(columns[-2]))
        flat = (np.concatenate(values), np.concatenate(columns)) if texts else (np.zeros(0), np.zeros(0, dtype=int))
        return csr_matrix((*flat, np.array(ends)), shape=(len(texts), len(self.idf)))

    @cached_property
    def _index(self) -> tuple[dict[str, int], dict[str, int]]:
        first = len(self.words)
        return {t: i for i, t in enumerate(self.words)}, {t: first + i for i, t in enumerate(self.characters)}

    def _block(self, counts: Counter[int]) -> tuple[np.ndarray, np.ndarray]:
        column = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
        value = (1 + np.log(np.fromiter(counts.values(), dtype=np.float64, count=len(counts)))) * self.idf[column]
        length = np.sqrt((value**2).sum())
        return column, value / length if length else value


def _both(text: str) -> tuple[list[str], list[str]]:
    lowered = text.lower()
    return list(_word_terms(lowered)), list(_character_terms(lowered))


def _word_terms(text: str) -> Iterator[str]:
    words = _WORD.findall(text)
    yield from words
    for pair in pairwise(words):
        yield " ".join(pair)


def _character_terms(text: str) -> Iterator[str]:
    for word in _SPACES.sub(" ", text).split():
        padded = f" {word} "
        for n in _RUNS:
            if len(padded) <= n:  # a word shorter than the run counts once, whole
                yield padded
                break
            for start in range(len(padded) - n + 1):
                yield padded[start : start + n]
