"""Keys and values of past tokens, in blocks that sequences share.

A block holds `BLOCK` consecutive tokens of one sequence. A full block is published under a digest of everything that
its contents depend on (base and adapter, tenant, all tokens up to its end), so that a later sequence with the same
beginning takes it over instead of computing it. Blocks that nobody uses stay findable until their room is needed,
the longest unused going first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pando.model.config import AttentionConfig

BLOCK = 16


def source_digests(root: bytes, tokens: Sequence[int]) -> list[bytes]:
    """One digest for each block of an encoder's input, the last one too, each covering all of it: what an encoder makes
    of a token depends on all the others."""
    whole = hashlib.blake2b(root + array("q", tokens).tobytes(), digest_size=16).digest()
    places = range(-(-len(tokens) // BLOCK))
    return [hashlib.blake2b(whole + place.to_bytes(4, "little"), digest_size=16).digest() for place in places]


def digests(root: bytes, tokens: Sequence[int]) -> list[bytes]:
    """One digest for each full block of `tokens`, each covering everything before it; `root` names the weights."""
    chain, digest = [], root
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        digest = hashlib.blake2b(digest + array("q", tokens[end - BLOCK : end]).tobytes(), digest_size=16).digest()
        chain.append(digest)
    return chain


class BlockPool:
    """Bookkeeping of blocks: free, in use (counted), or idle but still findable.

    Attributes:
        size: how many there are. promised: how many of those that are available sequences under way may still take.
    """

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self.promised = 0  # to sequences that may still grow
        self._free = deque(range(blocks))
        self._users = [0] * blocks
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free) + len(self._idle)

    def match(self, chain: Iterable[bytes]) -> list[int]:
        """The longest run of published blocks at the head of `chain`."""
        found = []
        for digest in chain:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def claim(self, blocks: Iterable[int]) -> None:
        """Counts one more user of published blocks."""
        for block in blocks:
            self._users[block] += 1
            self._idle.pop(block, None)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks with one user each; the caller has checked `available`."""
        if count > self.available:
            raise RuntimeError(f"{count} blocks were asked for, of which {self.available} are there")
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.popleft()
            else:
                block, _ = self._idle.popitem(last=False)
                del self._block_of[self._digest_of.pop(block)]
            self._users[block] = 1
            taken.append(block)
        return taken

    def publish(self, block: int, digest: bytes) -> None:
        """Makes a full block findable, unless another one with the same contents already is."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def release(self, blocks: Iterable[int]) -> None:
        """Counts one user less; blocks without users become idle if findable, else free."""
        for block in blocks:
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._digest_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)


class KVCache:
    """Per layer, keys and values [blocks, BLOCK, kv_heads, width], as `AttentionConfig.cached` says. One keeps what
    decoders make of their own tokens, another one what they make of an encoder's.

    Layers that look back equally far share a pool of blocks. Where that is all the way, a sequence holds its blocks
    from its beginning to its end; in a window, only those that its next token still sees.

    Args:
        attentions: of each layer; none where there is nothing to keep (encoders).
        context: most tokens of a sequence.
        blocks: of the layers that look all the way back; the others have fewer in proportion.
        longest: most tokens that one row may add.

    Attributes:
        pools: by how far layers look back; None is all the way.
        windows: the windows of layers -> that of their pool.
    """

    def __init__(
        self,
        attentions: Sequence[AttentionConfig],
        context: int,
        blocks: int,
        longest: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._longest, self._context = longest, context
        self.windows: dict[int | None, int | None] = {}
        for attention in attentions:
            window = attention.window
            self.windows[window] = None if window is None or window >= context else window
        used = {None, *self.windows.values()}  # sequences are counted in blocks of the first, whoever uses it
        self.pools = {window: BlockPool(self._share(window, blocks)) for window in used}
        self._keys: list[Tensor] = []
        self._values: list[Tensor | None] = []  # None: values are the beginnings of the keys
        for attention in attentions:
            heads, key, value = attention.cached
            size = self.pools[self.windows[attention.window]].size
            self._keys.append(_zeros((size, BLOCK, heads, key), device, dtype))
            self._values.append(_zeros((size, BLOCK, heads, value), device, dtype) if value else None)

    def most(self, window: int | None, room: int) -> int:
        """Blocks that a sequence of `room` tokens holds at once at most."""
        whole = -(-room // BLOCK)
        return whole if window is None else min(whole, -(-(window + self._longest) // BLOCK) + 2)

    def _share(self, window: int | None, blocks: int) -> int:
        if window is None:
            return blocks
        here, full = self.most(window, self._context), self.most(None, self._context)
        return max(here, -(-blocks * here // full))

    def admit(self, chain: Sequence[bytes], room: int) -> Lease | None:
        """Places for a sequence of up to `room` tokens that begins with the published blocks of `chain`, as many of
        them as all pools still have; None where there is no room now."""
        known = self.known(chain)
        lease = Lease(self, room)
        for window, pool in self.pools.items():
            lease.held[window] = dict(self._found(window, chain[:known]))
            lease.ends[window] = known
            pool.claim(lease.held[window].values())
        if any(pool.available - pool.promised < lease.owed(window) for window, pool in self.pools.items()):
            lease.release()
            return None
        for window, pool in self.pools.items():
            pool.promised += lease.owed(window)
        lease.admitted = True
        return lease

    def known(self, chain: Sequence[bytes]) -> int:
        """How many blocks at the head of `chain` a sequence can take over."""
        count = len(self.pools[None].match(chain))
        windows = [window for window in self.pools if window is not None]
        while count and any(len(self._found(w, chain[:count])) < self._wanted(w, count) for w in windows):
            count -= 1
        return count

    def _wanted(self, window: int | None, count: int) -> int:
        """How many blocks of `count` the token behind them still sees."""
        return count - first_seen(window, count * BLOCK)

    def _found(self, window: int | None, chain: Sequence[bytes]) -> list[tuple[int, int]]:
        """(place, block) of the published blocks that the token behind the chain sees."""
        start = first_seen(window, len(chain) * BLOCK)
        return list(enumerate(self.pools[window].match(chain[start:]), start))

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k, v [N, kv_heads, width] at token `slots` [N] (block * BLOCK + offset)."""
        self._keys[layer].flatten(0, 1).index_copy_(0, slots, k)
        values = self._values[layer]
        if values is not None:
            values.flatten(0, 1).index_copy_(0, slots, v)

    def read(self, layer: int, table: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values (of `width`) [R, blocks * BLOCK, kv_heads, ...] of the block `table` [R, blocks]."""
        keys, values = _gathered(self._keys[layer], table), self._values[layer]
        return keys, keys[..., :width] if values is None else _gathered(values, table)


class Lease:
    """A sequence's places in the cache.

    Attributes:
        room: most tokens that places were promised for.
        held: by window of the pool: place in the sequence -> block.
        ends: by window: the place behind the last block.
    """

    def __init__(self, cache: KVCache, room: int) -> None:
        self._cache, self.room = cache, room
        self.held: dict[int | None, dict[int, int]] = {}
        self.ends: dict[int | None, int] = {}
        self.admitted = False
        self._published = 0

    def slots(self, window: int | None, places: Iterable[int]) -> list[int]:
        """Where the tokens at these places have theirs in a pool."""
        blocks = self.held[window]
        return [blocks[place // BLOCK] * BLOCK + place % BLOCK for place in places]

    def owed(self, window: int | None) -> int:
        """Blocks that it may still ask a pool for."""
        return max(0, self._cache.most(window, self.room) - len(self.held[window]))

    def grow(self, room: int) -> bool:
        """Promises places for up to `room` tokens; False where a pool has none to promise."""
        pools, before = self._cache.pools, self.room
        more = {window: -self.owed(window) for window in pools}
        self.room = room
        for window in pools:
            more[window] += self.owed(window)
        if any(pool.available - pool.promised < more[window] for window, pool in pools.items()):
            self.room = before
            return False
        for window, pool in pools.items():
            pool.promised += more[window]
        return True

    def extend(self, end: int) -> None:
        """Takes blocks for all tokens before `end`; they were promised when it was admitted."""
        for window, pool in self._cache.pools.items():
            before, fresh = self.owed(window), range(self.ends[window], -(-end // BLOCK))
            self.held[window].update(zip(fresh, pool.allocate(len(fresh)), strict=True))
            self.ends[window] += len(fresh)
            pool.promised -= before - self.owed(window)

    def trim(self, place: int) -> None:
        """Gives back the blocks that a token at `place` and those after it do not see."""
        for window, pool in self._cache.pools.items():
            if window is None:
                continue
            held, before = self.held[window], self.owed(window)
            gone = [index for index in held if index < first_seen(window, place)]
            pool.release([held.pop(index) for index in gone])
            pool.promised += self.owed(window) - before

    def publish(self, chain: Sequence[bytes]) -> None:
        """Makes its full blocks findable; `chain` has their digests."""
        for index in range(self._published, len(chain)):
            for window, pool in self._cache.pools.items():
                if index in self.held[window]:
                    pool.publish(self.held[window][index], chain[index])
        self._published = max(self._published, len(chain))

    def table(self, window: int | None, past: int, end: int) -> tuple[int, list[int]]:
        """The first place that tokens from `past` on see, in blocks, and the blocks from there to `end` (tokens)."""
        first = first_seen(window, past)
        return first, [self.held[window][index] for index in range(first, -(-end // BLOCK))]

    def release(self) -> None:
        """Gives everything back."""
        for window, pool in self._cache.pools.items():
            if self.admitted:
                pool.promised -= self.owed(window)
            pool.release(reversed(self.held[window].values()))  # a beginning is of use without its end: it goes last
            self.held[window] = {}
        self.admitted = False


def first_seen(window: int | None, place: int) -> int:
    """The first block of which a token at `place` sees anything."""
    return 0 if window is None else max(0, place - window + 1) // BLOCK


def _gathered(kept: Tensor, table: Tensor) -> Tensor:
    found: Tensor = kept.index_select(0, table.flatten()).unflatten(0, (table.shape[0], -1))
    return found.flatten(1, 2)


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, because masked keys still enter products, where a stray NaN would spread.

    On a CPU they come from numpy, whose zeros take memory only once written; torch writes its own at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    integers = {4: np.int32, 2: np.int16}[dtype.itemsize]
    return torch.from_numpy(np.zeros(shape, dtype=integers)).view(dtype)
