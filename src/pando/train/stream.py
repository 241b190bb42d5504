"""From shards to batches: documents in order, each drawn for an objective, packed into rows, row after row.

Everything is a function of the seed and of how far the stream is. What is drawn for a document depends only on the
seed, the epoch and the document, so that a restart makes the waiting pieces again from their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from pando.errors import PandoError
from pando.train.batch import Batch, collate_rows
from pando.train.example import Example
from pando.train.objectives import Mixture
from pando.train.packing import POOL, Key, Packer
from pando.train.shards import Document, Shards


class Stream:
    """Endless batches of one global step each. Every rank makes the same ones and takes its own rows.

    The first epoch reads the train split in its order, each later one in a permutation of its own.

    Args:
        shards: the corpus.
        mixture: what documents become.
        sequence_length: T, slots of a row.
        rows: rows of a batch; it may be set anew at any time, the rows themselves stay the same.
        seed: of the packing, the drawing and the later epochs.

    Attributes:
        epoch, document: how far it has read; documents that wait in the packer are counted as read.

    Raises:
        PandoError: the corpus has no documents to train on.
    """

    def __init__(self, shards: Shards, mixture: Mixture, sequence_length: int, rows: int, seed: int) -> None:
        self.rows = rows
        self.epoch = self.document = 0
        self._shards, self._mixture = shards, mixture
        self._documents = shards.documents("train")
        if not len(self._documents):
            raise PandoError(f"{shards.folder} has no documents in its train split: there is nothing to train on")
        self._length, self._seed = sequence_length, seed
        self._maker = _Maker(mixture, sequence_length, seed)
        self._packer = Packer(sequence_length, seed)
        # a share of a small corpus only, so that its epochs do not run into each other
        self._pool = min(POOL, max(64, len(self._documents) // 8))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch [rows, T].

        Raises:
            DataError: a shard is missing or damaged; names the file.
        """
        made = []
        for _ in range(self.rows):
            while len(self._packer) < self._pool:
                self._read()
            made.append(self._packer.row())
        return collate_rows(made, self._length, self._mixture.names, self._shards.end)

    def state_dict(self) -> dict[str, Any]:
        """The exact position, as plain numbers and texts (JSON takes it)."""
        return {**self._made_for(), "epoch": self.epoch, "document": self.document, "packer": self._packer.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position that `state_dict` told; only `rows` may differ between the two streams.

        Raises:
            PandoError: the corpus, the objectives, the sequence length or the seed are others; says which.
        """
        for what, mine in self._made_for().items():
            if state.get(what) != mine:
                raise PandoError(
                    f"the {what.replace('_', ' ')} has changed since the checkpoint was written "
                    f"({state.get(what)!r} then, {mine!r} now): go on with the old one or start a new run"
                )
        examples: dict[Key, Example] = {}
        for _, key, *_ in state["packer"]["pool"]:
            if tuple(key) not in examples:
                examples |= self._examples(key[0], key[1])
        self._packer.restore(state["packer"], examples)
        self.epoch, self.document = state["epoch"], state["document"]

    def _made_for(self) -> dict[str, Any]:
        return {
            "corpus": self._shards.hash,
            "objectives": self._mixture.fingerprint,
            "sequence_length": self._length,
            "seed": self._seed,
        }

    def _read(self) -> None:
        index = self.document
        if self.epoch:
            index = int(_order(len(self._documents), self._seed, self.epoch)[index])
        for key, example in self._examples(self.epoch, index).items():
            self._packer.add(example, key)
        self.document += 1
        if self.document == len(self._documents):
            self.epoch, self.document = self.epoch + 1, 0

    def _examples(self, epoch: int, index: int) -> dict[Key, Example]:
        return self._maker.examples(self._documents[index], epoch, index)


def whole_batches(
    documents: Sequence[Document], mixture: Mixture, sequence_length: int, rows: int, end: int, seed: int = 0
) -> Iterator[Batch]:
    """All documents once, packed alike, for validation: the last batch has fewer rows, the last rows some padding."""
    maker, packer = _Maker(mixture, sequence_length, seed), Packer(sequence_length, seed)
    made = []
    for index in range(len(documents) + 1):
        if index < len(documents):
            for key, example in maker.examples(documents[index], 0, index).items():
                packer.add(example, key)
        while len(packer) > (POOL if index < len(documents) else 0):
            made.append(packer.row())
            if len(made) == rows:
                yield collate_rows(made, sequence_length, mixture.names, end)
                made = []
    if made:
        yield collate_rows(made, sequence_length, mixture.names, end)


class _Maker:
    """Examples of a document, by (epoch, index, part of the document, objective)."""

    def __init__(self, mixture: Mixture, room: int, seed: int) -> None:
        self._mixture, self._room, self._seed = mixture, room, seed

    def examples(self, document: Document, epoch: int, index: int) -> dict[Key, Example]:
        fit, shares = self._mixture.candidates(document.source)
        rng, which = None, fit[0]
        if len(fit) > 1 or self._mixture.parts[which].objective.random:
            rng = np.random.default_rng((self._seed, epoch, index))
            which = fit[int(np.searchsorted(shares, rng.random(), side="right"))] if len(fit) > 1 else which
        found = self._mixture.examples(which, document.tokens, self._room, rng)
        return {(epoch, index, part, which): example for part, example in enumerate(found)}


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
