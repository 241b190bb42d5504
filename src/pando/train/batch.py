"""One step's worth of packed rows, as named arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pando.model.config import ModelConfig
from pando.model.context import Context, PackedContext, RowContext
from pando.train.example import IGNORE
from pando.train.packing import Piece

PADDING = -1  # number of the document that padding is
# What an encoder and its decoder read, and what a head is given, is filled up to a multiple of it: libraries prepare
# their products for each shape that they meet, and keep them, about a megabyte each.
SIDE = 64
_ARRAYS = ("tokens", "targets", "documents", "positions", "prefix", "objective")


@dataclass(frozen=True)
class Batch:
    """Packed rows [rows, T].

    Attributes:
        tokens: int64, what the model reads.
        targets: int64, what each slot predicts, or IGNORE (-100).
        documents: int64, number of the document within its row; tokens never see another one. Padding is PADDING (-1),
            a document of its own without targets.
        positions: int64, place within the document.
        prefix: bool, whether all of its document sees the slot; other slots are seen only by what comes after them.
        objective: int64, which of `names` the slot belongs to.
        names: the objectives of the mixture.
        places: int64 [S], flat indices of the slots that have a target.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    positions: Tensor
    prefix: Tensor
    objective: Tensor
    names: tuple[str, ...]
    places: Tensor

    @property
    def weight(self) -> int:
        """How many slots have a target."""
        return self.places.shape[0]

    @property
    def used(self) -> int:
        """How many slots are no padding."""
        return int((self.documents != PADDING).sum())

    def rows(self, which: slice) -> Batch:
        """Some of the rows. Take them before the batch goes to a device: nothing has to wait there then."""
        arrays = {name: getattr(self, name)[which] for name in _ARRAYS}
        return replace(self, **arrays, places=_places(arrays["targets"]))

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in (*_ARRAYS, "places")}
        return replace(self, **moved)

    def inputs(self, config: ModelConfig) -> Inputs:
        """What a model is given. An encoder's tokens see all of their document; where there is an encoder besides, it
        reads the prefixes, and the rest is the decoder's."""
        if config.encoder is None:
            ctx = RowContext(
                self.tokens,
                self.documents,
                positions=self.positions,
                prefix=self.prefix,
                both_ways=config.both_ways,
            )
            return Inputs(self.tokens, ctx, self.places)
        read = self.prefix.flatten()
        written = ~read & (self.documents != PADDING).flatten()
        row = torch.arange(len(self.documents), device=self.documents.device)[:, None]
        numbers = (self.documents + row * self.documents.shape[1]).flatten()
        behind, own = (numbers[side].unique_consecutive(return_counts=True)[1].tolist() for side in (read, written))
        tokens, device = self.tokens.flatten(), self.tokens.device
        source = _filled(tokens[read], behind), PackedContext(behind, device, both_ways=True)
        places = (written.cumsum(0) - 1)[self.places]
        return Inputs(_filled(tokens[written], own), PackedContext(own, device, source=source), places)


class Inputs(NamedTuple):
    """What a model is given of a batch.

    Attributes:
        tokens: rows [rows, T] or packed [N], as `context` has them.
        places: flat indices into these of the slots that have a target, [S].
    """

    tokens: Tensor
    context: Context
    places: Tensor


def collate_rows(rows: Sequence[Sequence[Piece]], length: int, names: tuple[str, ...], end: int) -> Batch:
    """Lays out packed pieces, the last number of whose key says which of `names` they belong to; `end` fills up."""
    shape = (len(rows), length)
    tokens, targets = np.full(shape, end), np.full(shape, IGNORE)
    documents, positions = np.full(shape, PADDING), np.zeros(shape, np.int64)
    prefix, objective = np.zeros(shape, bool), np.zeros(shape, np.int64)
    steps = np.arange(length)
    for r, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row):
            start, stop, example = piece.start, piece.stop, piece.example
            here = slice(at, at + stop - start)
            tokens[r, here] = example.tokens[start:stop]
            targets[r, here] = example.targets[start:stop]
            documents[r, here] = number
            positions[r, here] = steps[: stop - start]
            objective[r, here] = piece.key[-1]
            if example.prefix > start:
                prefix[r, at : at + min(example.prefix, stop) - start] = True
            at += stop - start
        positions[r, at:] = steps[: length - at]
    arrays = dict(
        zip(_ARRAYS, map(torch.from_numpy, (tokens, targets, documents, positions, prefix, objective)), strict=True)
    )
    return Batch(**arrays, names=names, places=_places(arrays["targets"]))


def _filled(tokens: Tensor, lengths: list[int]) -> Tensor:
    """Packed tokens with one more document, without targets, that fills them up to a multiple of `SIDE`."""
    lengths.append(SIDE - tokens.shape[0] % SIDE)
    return torch.cat((tokens, tokens.new_zeros(lengths[-1])))


def _places(targets: Tensor) -> Tensor:
    return (targets.flatten() != IGNORE).nonzero()[:, 0]
