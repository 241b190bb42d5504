"""Documents in an order of how well they answer a query: by words (BM25), by vectors, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pando.interface import Side

K1, B = 1.5, 0.75  # BM25's usual ones, as bm25s has them


@dataclass(frozen=True, eq=False)
class Bm25:
    """BM25 (Robertson et al. 1994; Lucene's form) as numbers: what each word of the corpus is worth in each document.

    Attributes:
        words: the vocabulary.
        data, indices, indptr: the scores by word, documents in ascending order (a compressed sparse column matrix).
        documents: how many.
    """

    words: tuple[str, ...]
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    documents: int

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Bm25:
        """Of a corpus, by bm25s: words of two letters or more, whatever the language, without stop words or stems."""
        import bm25s
        from scipy.sparse import csc_array

        found = _words(texts)
        if not any(found):  # single characters, as some scripts write words, are none here
            return cls((), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64), len(texts))
        made = bm25s.BM25(method="lucene", k1=K1, b=B)
        made.index(found, show_progress=False)
        kept = made.scores
        columns = csc_array((kept["data"], kept["indices"], kept["indptr"]), (len(texts), len(kept["indptr"]) - 1))
        # theirs are numbered in another order in each process, and an empty one that no text has is the last
        words = sorted(word for word, place in made.vocab_dict.items() if place < columns.shape[1])
        columns = columns[:, [made.vocab_dict[word] for word in words]]
        data, indices = columns.data.astype(np.float32), columns.indices.astype(np.int32)
        return cls(tuple(words), data, indices, columns.indptr.astype(np.int64), len(texts))

    def __call__(self, query: str) -> np.ndarray:
        """Of each document, float32 [documents]."""
        places = self._places
        scores = np.zeros(self.documents, dtype=np.float32)
        (words,) = _words([query])
        for word in words:
            place = places.get(word)
            if place is not None:
                part = slice(self.indptr[place], self.indptr[place + 1])
                scores[self.indices[part]] += self.data[part]
        return scores

    @property
    def _places(self) -> dict[str, int]:
        if "_known" not in self.__dict__:
            object.__setattr__(self, "_known", {word: place for place, word in enumerate(self.words)})
        known: dict[str, int] = self.__dict__["_known"]
        return known


@dataclass(frozen=True, eq=False)
class DocumentIndex:
    """What a skin knows of the corpus that it searches; not the texts.

    Attributes:
        ids: of each document.
        words: for searching by words, or None.
        vectors: float32 [documents, d], unit length, for searching by vectors, or None.
        mean: float32 [d] that vectors are centred by before they get that length, or None.
    """

    ids: tuple[str, ...]
    words: Bm25 | None = None
    vectors: np.ndarray | None = None
    mean: np.ndarray | None = None

    def similarity(self, vector: np.ndarray) -> np.ndarray:
        """Cosine of each document's vector and a query's, float32 [documents]."""
        assert self.vectors is not None
        found: np.ndarray = self.vectors @ unit(vector[None], self.mean)[0]
        return found


@dataclass(frozen=True)
class Searching:
    """How documents are ranked.

    Attributes:
        share: of vectors in the mean of both scores, each brought to the range from 0 to 1; 0 is words alone, 1 vectors
            alone.
        depth: most documents of an answer.
        query_prompt, document_prompt: stand before a query and before a document.
        max_tokens: of a query or document that are read for its vector.
        lower: they are read in lower case.
    """

    share: float = 0.0
    depth: int = 100
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int = 256
    lower: bool = False

    def read(self, text: str, side: Side | None) -> str:
        """What is read of a text for its vector: its prompt before it. An empty document has a vector too, a dot's."""
        prompt = {"query": self.query_prompt, "document": self.document_prompt, None: ""}[side]
        found = prompt + (text if text.strip() or side != "document" else ".")
        return found.lower() if self.lower else found


def ranked(documents: DocumentIndex, how: Searching, query: str, vector: np.ndarray | None) -> dict[str, float]:
    """The best documents and their scores, the best first; of equal ones the earlier is better. By words alone, those
    that share none with the query are left out."""
    by_words = documents.words(query) if how.share < 1 and documents.words is not None else None
    near = documents.similarity(vector) if how.share > 0 and vector is not None else None
    if by_words is None or near is None:
        scores = near if by_words is None else by_words
        assert scores is not None
    else:
        scores = (1 - how.share) * _spread(by_words) + how.share * _spread(near)
    order = _best(scores, how.depth)
    if near is None:
        order = order[scores[order] > 0]
    return {documents.ids[i]: round(float(scores[i]), 6) for i in order}


def unit(vectors: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """float32 [n, d], centred where there is a mean, of unit length."""
    moved = vectors if mean is None else vectors - mean
    found: np.ndarray = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    return found.astype(np.float32)


def _best(scores: np.ndarray, depth: int) -> np.ndarray:
    """Where the highest scores are, the highest first, of equal ones the first; without sorting all of them."""
    places = np.arange(len(scores))
    if len(scores) > depth:
        places = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    found: np.ndarray = places[np.argsort(-scores[places], kind="stable")][:depth]
    return found


def _spread(scores: np.ndarray) -> np.ndarray:
    low, high = float(scores.min()), float(scores.max())
    found: np.ndarray = (scores - low) / max(high - low, 1e-12)
    return found


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    found: list[list[str]] = bm25s.tokenize(list(texts), stopwords=None, return_ids=False, show_progress=False)
    return found
