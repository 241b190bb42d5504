"""One step of the engine: rows of new tokens of many sequences, packed flat, each over its own cached past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pando.engine.cache import BLOCK, KVCache
from pando.model import relative
from pando.model.attention import attention
from pando.model.config import AttentionConfig, RelativeConfig
from pando.model.context import Adapters, Context, Remember
from pando.model.lora import LoraAdapter

if TYPE_CHECKING:
    from pando.engine.jobs import Job


@dataclass
class Row:
    """New tokens of one job.

    Attributes:
        job: whose they are.
        tokens, positions: ids and places in the sequence, [T].
        past: tokens already in the cache, all of which the new ones see.
        want: which of the new tokens need logits.
        tree: bool [B, B] for the last B tokens, where branches that share the past must not see each other: who
            sees whom. None: plain causal order.
    """

    job: Job
    tokens: list[int]
    positions: list[int]
    past: int
    want: list[int] = field(default_factory=list)
    tree: NDArray[np.bool_] | None = None

    @property
    def end(self) -> int:
        """Tokens in the cache once the new ones are."""
        return self.past + len(self.tokens)

    @property
    def work(self) -> int:
        """Tokens that are computed for it in this step, those that an encoder reads first included."""
        source = self.job.source
        return len(self.tokens) + (0 if source is None or source.read else len(source.tokens))

    def slots(self, pool: int | None) -> list[int]:
        """Where the new tokens' keys and values go in a pool."""
        assert self.job.lease is not None
        return self.job.lease.slots(pool, range(self.past, self.end))

    @property
    def places(self) -> NDArray[np.int64]:
        """Positions of all tokens that are in the cache once the new ones are."""
        return np.concatenate((np.arange(self.past), np.array(self.positions, dtype=np.int64)))

    def visible(self, window: int | None) -> NDArray[np.bool_]:
        """bool [T, past + T]: which keys each new token sees, in a layer that looks back so far."""
        length = len(self.tokens)
        mask = np.tri(length, self.past + length, self.past, dtype=bool)
        if self.tree is not None:
            branch = len(self.tree)
            mask[-branch:, -branch:] = self.tree
        if window is not None:
            mask &= np.array(self.positions)[:, None] - self.places < window
        return mask


class MixedAdapters:
    """Adapters of the rows of one batch: each token gets its own row's, or none."""

    def __init__(self, parts: list[tuple[LoraAdapter, Tensor | None]]) -> None:
        self._parts = parts  # (adapter, indices of its tokens, or None for every token)

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """Low-rank change [N, out] for x [N, in]; None where no adapter of the batch has this site."""
        total: Tensor | None = None
        for adapter, index in self._parts:
            change = adapter.delta(site, x if index is None else x[index])
            if change is None or index is None:
                total = change if total is None else total
                continue
            if total is None:
                total = x.new_zeros(x.shape[0], change.shape[-1])
            total.index_add_(0, index, change)
        return total

    def grouped(self, site: str, x: Tensor, counts: Tensor, tokens: Tensor) -> Tensor | None:
        """The same for experts: each row gets the change of its token's adapter."""
        total: Tensor | None = None
        for adapter, index in self._parts:
            if index is None:
                change = adapter.grouped(site, x, counts, tokens)
                total = change if total is None else total
                continue
            mine = torch.isin(tokens, index).nonzero()[:, 0]
            experts = torch.arange(len(counts), device=x.device).repeat_interleave(counts)[mine]
            own = torch.bincount(experts, minlength=len(counts))
            change = adapter.grouped(site, x[mine], own, tokens[mine]) if len(mine) else None
            if change is not None:
                if total is None:
                    total = x.new_zeros(x.shape[0], change.shape[-1])
                total.index_add_(0, mine, change)
        return total


def mix_adapters(rows: Iterable[tuple[LoraAdapter | None, int]], device: torch.device) -> Adapters | None:
    """The adapters of a batch, or None if there are none.

    Args:
        rows: of each, its adapter and its tokens, laid end to end.
    """
    indices: dict[int, list[int]] = {}
    adapters: dict[int, LoraAdapter] = {}
    at = 0
    for adapter, count in rows:
        if adapter is not None:
            adapters[id(adapter)] = adapter
            indices.setdefault(id(adapter), []).extend(range(at, at + count))
        at += count
    if not adapters:
        return None
    parts: list[tuple[LoraAdapter, Tensor | None]] = []
    for key, adapter in adapters.items():
        everywhere = len(indices[key]) == at
        parts.append((adapter, None if everywhere else torch.tensor(indices[key], device=device)))
    return MixedAdapters(parts)


@dataclass
class _Group:
    """Rows of like shape whose attention runs as one padded call."""

    gather: Tensor  # [R, T] flat index of each query; padding repeats the first token
    valid: Tensor  # bool [R, T]
    flat: Tensor  # flat indices of the valid queries, in row-major order
    seen: dict[int | None, tuple[Tensor, Tensor]]  # by window: [R, blocks], additive [R, 1, T, blocks * BLOCK]
    places: Tensor  # positions of the keys of layers that look all the way back, [R, blocks * BLOCK]
    source: tuple[Tensor, Tensor] | None  # of the encoder's input: [R, blocks], additive [R, 1, 1, blocks * BLOCK]


class StepContext(Context):
    """The context of one engine step; tokens are packed flat [N].

    Args:
        cache: of the rows' own tokens. sources: of what an encoder read for them, where there is one.
    """

    absorbs = True

    def __init__(
        self,
        rows: Sequence[Row],
        cache: KVCache,
        device: torch.device,
        dtype: torch.dtype,
        observe: Callable[[int, Tensor], None] | None = None,
        sources: KVCache | None = None,
    ) -> None:
        positions = torch.tensor([p for row in rows for p in row.positions], device=device)
        adapters = mix_adapters(((row.job.adapter, len(row.tokens)) for row in rows), device)
        super().__init__(positions, adapters, observe)
        self._cache, self._sources = cache, sources
        self._slots = {
            window: torch.tensor([slot for row in rows for slot in row.slots(window)], device=device)
            for window in {*cache.windows.values()}
        }
        starts = np.cumsum([0] + [len(row.tokens) for row in rows])
        self._groups = [
            _group([rows[i] for i in members], [int(starts[i]) for i in members], cache, sources, device, dtype)
            for members in _like_shapes(rows)
        ]

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, heads, d] over each row's cached past and its own visible new tokens: [N, heads, width of v]."""
        self._cache.write(layer, self._slots[self._cache.windows[config.window]], k, v)
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        for group in self._groups:
            table, mask = group.seen[config.window]
            keys, values = self._cache.read(layer, table, v.shape[-1])
            queries, keys, values = (x.transpose(1, 2) for x in (q[group.gather], keys, values))
            answer = attention(config, queries, keys, values, mask)
            out[group.flat] = answer.transpose(1, 2)[group.valid]
        return out

    def relate(self, config: RelativeConfig, table: Tensor) -> None:
        """See `Context.relate`."""
        for group in self._groups:
            blocks, mask = group.seen[None]
            bias = relative.bias(table, config, self.positions[group.gather], group.places, both_ways=False)
            group.seen[None] = blocks, mask + bias.to(mask.dtype)

    def consult(self, layer: int, config: AttentionConfig, q: Tensor, remember: Remember) -> Tensor:
        """q [N, heads, d] over what is kept of each row's input: [N, heads, d]."""
        assert self._sources is not None
        out = torch.empty_like(q)
        for group in self._groups:
            assert group.source is not None
            blocks, mask = group.source
            keys, values = self._sources.read(layer, blocks, q.shape[-1])
            queries, keys, values = (x.transpose(1, 2) for x in (q[group.gather], keys, values))
            out[group.flat] = attention(config, queries, keys, values, mask).transpose(1, 2)[group.valid]
        return out


def _like_shapes(rows: Sequence[Row]) -> list[list[int]]:
    """Groups rows so that padding to the longest of a group wastes at most about half of it."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].tokens), rows[i].past))
    groups: list[list[int]] = []
    work = 0
    for i in order:
        new, keys = len(rows[i].tokens), rows[i].past + len(rows[i].tokens)
        if groups:
            members = groups[-1]
            longest = max(rows[j].past + len(rows[j].tokens) for j in (*members, i))
            padded = (len(members) + 1) * new * longest
            if padded <= 1.5 * (work + new * keys) + 4096:
                members.append(i)
                work += new * keys
                continue
        groups.append([i])
        work = new * keys
    return groups


def _group(
    rows: list[Row],
    starts: list[int],
    cache: KVCache,
    sources: KVCache | None,
    device: torch.device,
    dtype: torch.dtype,
) -> _Group:
    queries = max(len(row.tokens) for row in rows)
    gather = np.zeros((len(rows), queries), dtype=np.int64)
    valid = np.zeros((len(rows), queries), dtype=bool)
    for r, (row, start) in enumerate(zip(rows, starts, strict=True)):
        new = len(row.tokens)
        gather[r] = start
        gather[r, :new] += np.arange(new)
        valid[r, :new] = True

    def moved(table: NDArray[np.int64], mask: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(table).to(device), torch.from_numpy(mask).to(device, dtype)

    places = np.zeros((len(rows), -(-max(row.end for row in rows) // BLOCK) * BLOCK), dtype=np.int64)
    for r, row in enumerate(rows):
        places[r, : row.end] = row.places
    return _Group(
        gather=torch.from_numpy(gather).to(device),
        valid=torch.from_numpy(valid).to(device),
        flat=torch.from_numpy(gather[valid]).to(device),
        seen={window: moved(*_seen(rows, queries, window, pool)) for window, pool in cache.windows.items()},
        places=torch.from_numpy(places).to(device),
        source=None if sources is None else moved(*_sources(rows)),
    )


def _sources(rows: list[Row]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The blocks that rows read of their inputs, [R, blocks], and what scores get, [R, 1, 1, blocks * BLOCK]."""
    inputs = [row.job.source for row in rows if row.job.source is not None]
    found = [(len(one.tokens), one.lease.table(None, 0, len(one.tokens))[1]) for one in inputs if one.lease is not None]
    width = max(len(blocks) for _, blocks in found)
    table = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.full((len(rows), 1, 1, width * BLOCK), -np.inf, dtype=np.float32)
    for r, (length, blocks) in enumerate(found):
        table[r, : len(blocks)] = blocks
        table[r, len(blocks) :] = blocks[0]
        mask[r, 0, 0, :length] = 0.0
    return table, mask


def _seen(
    rows: list[Row], queries: int, window: int | None, pool: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The blocks that rows read in layers that look back so far, [R, blocks], and what is added to their scores,
    [R, 1, T, blocks * BLOCK]."""
    found = [row.job.lease.table(pool, row.past, row.end) for row in rows if row.job.lease is not None]
    width = max(len(blocks) for _, blocks in found)
    table = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.full((len(rows), 1, queries, width * BLOCK), -np.inf, dtype=np.float32)
    for r, (row, (first, blocks)) in enumerate(zip(rows, found, strict=True)):
        new, keys = len(row.tokens), row.end - first * BLOCK
        table[r, : len(blocks)] = blocks
        table[r, len(blocks) :] = blocks[0]
        mask[r, 0, new:, 0] = 0.0  # padded queries see one key, so that their softmax is finite
        mask[r, 0, :new, :keys] = np.where(row.visible(window)[:, first * BLOCK :], 0.0, -np.inf)
    return table, mask
