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

from pando.model.config import ModelConfig

BLOCK = 16


def digests(root: bytes, tokens: Sequence[int]) -> list[bytes]:
    """One digest for each full block of `tokens`, each covering everything before it; `root` names the weights."""
    chain, digest = [], root
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        digest = hashlib.blake2b(digest + array("q", tokens[end - BLOCK : end]).tobytes(), digest_size=16).digest()
        chain.append(digest)
    return chain


class BlockPool:
    """Bookkeeping of blocks: free, in use (counted), or idle but still findable."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks
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
    """Per layer, keys and values [blocks, BLOCK, kv_heads, width], as `AttentionConfig.cached` says.

    Attributes:
        windows: how far back layers look; None: all the way.
    """

    def __init__(self, config: ModelConfig, blocks: int, device: torch.device, dtype: torch.dtype) -> None:
        self.pool = BlockPool(blocks)
        self.windows = frozenset(layer.attention.window for layer in config.layers)
        self._keys: list[Tensor] = []
        self._values: list[Tensor | None] = []  # None: values are the beginnings of the keys
        for layer in config.layers:
            heads, key, value = layer.attention.cached
            self._keys.append(_zeros((blocks, BLOCK, heads, key), device, dtype))
            self._values.append(_zeros((blocks, BLOCK, heads, value), device, dtype) if value else None)

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
