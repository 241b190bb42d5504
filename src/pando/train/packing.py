"""Packing: examples of any length -> rows of one length, almost without padding and without cutting what fits.

A pool of pieces waits. A row begins with one of them drawn at random (so the pool also shuffles) and is filled by best
fit: a piece that fills the room exactly, else two that do together, else the longest that fits. What then stays open
is filled with a part of an example longer than a row, which has to be cut somewhere anyway. Sets of lengths are kept as
the bits of one integer, which makes each of these questions a handful of machine instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pando.train.example import Example

POOL = 1024  # pieces that wait; more fit better, shuffle more and make a restart read more
_TRIES = 4

Key = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Piece:
    """Tokens `start` to `stop` of an example. `key` says which example it is, for whoever has to make it again."""

    serial: int
    key: Key
    example: Example
    start: int
    stop: int
    place: int = field(default=-1, repr=False)

    @property
    def soft(self) -> bool:
        """Whether it comes of an example that is longer than a row, so that it may be cut once more."""
        return self.start > 0 or self.stop < len(self.example.tokens)


class Packer:
    """Fills rows of `length` tokens. The same pieces in the same order give the same rows for a seed."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self._seed = seed
        self._made = self._rows = 0
        self._pool: list[Piece] = []
        # Pieces by length, oldest first; which lengths there are, as bits n and as bits (length - n); soft ones again.
        self._hard: list[dict[int, Piece]] = [{} for _ in range(length + 1)]
        self._soft: list[dict[int, Piece]] = [{} for _ in range(length + 1)]
        self._bits = self._mirror = self._soft_bits = 0

    def __len__(self) -> int:
        """Pieces that wait."""
        return len(self._pool)

    def add(self, example: Example, key: Key) -> None:
        """Takes an example in; one longer than a row as pieces of a row and a rest.

        Raises:
            ValueError: it is longer than a row and cannot be cut, or empty.
        """
        size = len(example.tokens)
        if size == 0 or (size > self.length and not example.cuttable):
            raise ValueError(f"an example of {size} tokens that cannot be cut, for rows of {self.length}")
        for start in range(0, size, self.length):
            self._insert(example, key, start, min(start + self.length, size))

    def row(self) -> list[Piece]:
        """The pieces of the next row, in order; takes them out. The pool must not be empty."""
        found = [self._remove(self._first())]
        self._rows += 1
        room = self.length - (found[0].stop - found[0].start)
        while room:
            piece = self._fitting(room) or self._cut(room)
            if piece is None:
                break
            found.append(piece)
            room -= piece.stop - piece.start
        return found

    def state(self) -> dict[str, Any]:
        """All that the next rows depend on, without the examples themselves: plain numbers."""
        pool = [[piece.serial, list(piece.key), piece.start, piece.stop] for piece in self._pool]
        return {"made": self._made, "rows": self._rows, "pool": pool}

    def restore(self, state: dict[str, Any], examples: dict[Key, Example]) -> None:
        """Takes up a state; `examples` has what each key of its pool stands for."""
        pieces = [Piece(serial, tuple(key), examples[tuple(key)], *ends) for serial, key, *ends in state["pool"]]
        self.__init__(self.length, self._seed)  # type: ignore[misc]
        for piece in sorted(pieces, key=lambda piece: piece.serial):
            self._register(piece)
        self._pool = pieces
        for place, piece in enumerate(pieces):
            piece.place = place
        self._made, self._rows = state["made"], state["rows"]

    def _first(self) -> Piece:
        """A piece drawn at random: of a few, the first that others fill up exactly, if there is one."""
        drawn = [self._pool[_mixed(self._seed, _TRIES * self._rows + i) % len(self._pool)] for i in range(_TRIES)]
        return next((piece for piece in drawn if self._completes(self.length - piece.stop + piece.start)), drawn[0])

    def _completes(self, room: int) -> bool:
        return room == 0 or bool(self._bits >> room & 1 or self._bits & (self._mirror >> (self.length - room)))

    def _fitting(self, room: int) -> Piece | None:
        """The best fit: fills the room alone, or together with another one, or is the longest that fits."""
        if self._bits >> room & 1:
            return self._oldest(room)
        pairs = self._bits & (self._mirror >> (self.length - room))  # bit n: there is an n and a (room - n)
        half = room // 2
        if room == 2 * half and pairs >> half & 1 and len(self._hard[half]) + len(self._soft[half]) < 2:
            pairs ^= 1 << half
        upper = pairs >> half  # the pair of lengths that are most alike leaves short pieces for small rooms
        if upper:
            return self._oldest(half + (upper & -upper).bit_length() - 1)
        fits = self._bits & ((1 << room) - 1)
        return self._oldest(fits.bit_length() - 1) if fits else None

    def _cut(self, room: int) -> Piece | None:
        """The first `room` tokens of a soft piece, the longest that is no whole row if there is one."""
        rests = self._soft_bits & ~(1 << self.length)
        longest = (rests if rests >> room else self._soft_bits).bit_length() - 1
        if longest < room:
            return None
        whole = self._remove(next(iter(self._soft[longest].values())))
        self._insert(whole.example, whole.key, whole.start + room, whole.stop)
        return Piece(whole.serial, whole.key, whole.example, whole.start, whole.start + room)

    def _oldest(self, size: int) -> Piece:
        found = self._hard[size] or self._soft[size]
        return self._remove(next(iter(found.values())))

    def _insert(self, example: Example, key: Key, start: int, stop: int) -> None:
        piece = Piece(self._made, key, example, start, stop, len(self._pool))
        self._made += 1
        self._pool.append(piece)
        self._register(piece)

    def _register(self, piece: Piece) -> None:
        size = piece.stop - piece.start
        (self._soft if piece.soft else self._hard)[size][piece.serial] = piece
        self._bits |= 1 << size
        self._mirror |= 1 << (self.length - size)
        if piece.soft:
            self._soft_bits |= 1 << size

    def _remove(self, piece: Piece) -> Piece:
        last = self._pool.pop()
        if last is not piece:
            self._pool[piece.place] = last
            last.place = piece.place
        size = piece.stop - piece.start
        del (self._soft if piece.soft else self._hard)[size][piece.serial]
        if not self._soft[size]:
            self._soft_bits &= ~(1 << size)
            if not self._hard[size]:
                self._bits &= ~(1 << size)
                self._mirror &= ~(1 << (self.length - size))
        return piece


def _mixed(seed: int, counter: int) -> int:
    """64 well-mixed bits (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (counter + 1) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)
