"""Training rows near an input: demonstrations to show, or the few labels worth scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pando.skin.parts import Demonstration
from pando.skin.tfidf import TfIdf

NEIGHBOURS = 50  # rows that vote for the shortlist


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Training rows as TF-IDF vectors.

    Attributes:
        words: their vectoriser.
        vectors: scipy CSR float32 [rows, d].
        labels: index of each row's label in the skin's, int32 [rows]; empty where there are no labels.
        rows: the rows themselves, where they are shown to the base; None where only their labels matter.
        shots: how many of them are shown.
        shortlist: how many labels are scored; 0 scores all.
    """

    words: TfIdf
    vectors: Any
    labels: np.ndarray
    rows: tuple[Demonstration, ...] | None = None
    shots: int = 0
    shortlist: int = 0

    def nearest(self, text: str) -> list[Demonstration]:
        """The rows to show, the most similar last; of equal ones the earlier is nearer."""
        assert self.rows is not None
        order = np.argsort(-self._similarity(text), kind="stable")
        return [self.rows[i] for i in order[: self.shots][::-1]]

    def candidates(self, text: str, labels: Sequence[str]) -> list[str]:
        """The labels worth scoring, in the skin's order: those nearest by summed similarity of the nearest rows, filled
        up with the most frequent ones."""
        if not self.shortlist or len(labels) <= self.shortlist:
            return list(labels)
        similarity = self._similarity(text)
        near = np.argsort(-similarity, kind="stable")[:NEIGHBOURS]
        votes = np.bincount(self.labels, minlength=len(labels)) / (len(self.labels) * 1e6)  # breaks ties only
        np.add.at(votes, self.labels[near], similarity[near])
        chosen = np.argsort(-votes, kind="stable")[: self.shortlist]
        return [labels[i] for i in sorted(chosen)]

    def _similarity(self, text: str) -> np.ndarray:
        """Of each row, float64 [rows]."""
        # times a dense vector: many times as fast as a product of two sparse matrices
        found: np.ndarray = self.vectors @ self.words([text]).toarray()[0]
        return found
