"""Attention in bfloat16 on a CPU, with gradients: block by block of queries, as in FlashAttention-2
(arXiv 2307.08691), by plain tensor operations.

torch's own kernel takes up to twice as long, in float32 and in bfloat16, has no view of several documents in a row, and
in bfloat16 keeps a product prepared for each length that it meets. Here, lengths are whole multiples of `_BLOCK`, and
there are few of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pando.model.config import AttentionConfig

_LEAST = 2048  # queries of all heads, from which on it is faster than torch's
_BLOCK = 128  # queries of a block, or twice as many
_STEPS = 8  # keys of a block are a multiple of a power of two, so many times at most
_NUMBERS = 1 << 20  # scores that are made at a time, about
_KEPT = 1152  # keys a query, in the mean, up to which weights are kept for the backward pass: 2,048 tokens in one piece


def learns_in_bfloat16(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether gradients are wanted on a CPU in less than float32."""
    learnt = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return learnt and q.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or q.dtype != torch.float32)


def pays(config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether it can be used for q [B, T, heads, d] and is faster than torch's kernel."""
    large = q.shape[1] >= _BLOCK and q.shape[:3].numel() >= _LEAST
    return large and config.softcap is None and learns_in_bfloat16(q, k, v)


class Part(NamedTuple):
    """A block of queries of some rows, and the keys that one of them sees.

    Attributes:
        hidden: columns of the scores with what is added to them, [rows or 1, 1, queries, columns]: 0, or -inf where a
            query does not see the key.
    """

    rows: slice
    block: int
    keys: slice
    hidden: list[tuple[slice, Tensor]]


class Layout(NamedTuple):
    """How rows are gone through.

    Attributes:
        block: queries of a part. whole: tokens of a row, filled up to a multiple of it.
        keeps: whether weights are kept for the backward pass, or made again there.
    """

    block: int
    whole: int
    parts: list[Part]
    keeps: bool


class Spans:
    """Which keys the queries of rows see: of their own document those up to themselves, or all at its head.

    Args:
        first: int64 [B, T], where in its row each token's document begins.
        heads: int64 [B, T], how many tokens at its head all of the document sees.
    """

    def __init__(self, first: Tensor, heads: Tensor) -> None:
        places = torch.arange(first.shape[1])
        self._places, self._first, self._end = places, first, (first + heads).maximum(places + 1)
        self._layouts: dict[tuple[int, int | None], Layout] = {}

    def layout(self, heads: int, window: int | None) -> Layout:
        """How the rows are gone through with so many heads, where a query sees less than `window` tokens away."""
        if (heads, window) not in self._layouts:
            self._layouts[heads, window] = self._laid_out(heads, window)
        return self._layouts[heads, window]

    def _laid_out(self, heads: int, window: int | None) -> Layout:
        first, end = self._first, self._end
        if window is not None:
            first, end = first.maximum(self._places - window + 1), end.minimum(self._places + window)
        rows, length = first.shape
        some = min(rows, max(1, _NUMBERS // (heads * _BLOCK * length)))
        block = _BLOCK if some * heads > 4 or length < 8 * _BLOCK else 2 * _BLOCK
        whole = -(-length // block) * block
        filled = torch.arange(length, whole).expand(rows, -1)  # they see themselves
        first, end = torch.cat((first, filled), 1), torch.cat((end, filled + 1), 1)
        parts = []
        for row in range(0, rows, some):
            for place in range(0, whole, block):
                those, queries = slice(row, min(row + some, rows)), slice(place, place + block)
                keys, hidden = _keys(first[those, queries], end[those, queries], whole)
                parts.append(Part(those, place // block, keys, hidden))
        numbers = sum((part.rows.stop - part.rows.start) * (part.keys.stop - part.keys.start) for part in parts)
        return Layout(block, whole, parts, numbers * block <= _KEPT * rows * whole)


def _keys(first: Tensor, end: Tensor, most: int) -> tuple[slice, list[tuple[slice, Tensor]]]:
    """The keys of a part, out of so many, and what is hidden of them, from where its queries [rows, block] begin and
    end to see."""
    keys = _widened(int(first.min()), int(end.max()), most)
    begins, ends = min(int(first.max()), keys.stop), max(int(end.min()), keys.start)  # of what all of them see
    edges = [(keys.start, begins), (ends, keys.stop)] if begins < ends else [(keys.start, keys.stop)]
    if (first == first[0]).all() and (end == end[0]).all():
        first, end = first[:1], end[:1]
    hidden = []
    for start, stop in edges:
        if start < stop:
            places = torch.arange(start, stop)
            blind = (places < first[..., None]) | (places >= end[..., None])
            mask = torch.zeros(blind.shape, dtype=torch.bfloat16).masked_fill_(blind, -torch.inf)
            hidden.append((slice(start - keys.start, stop - keys.start), mask[:, None]))
    return keys, hidden


def _widened(start: int, stop: int, most: int) -> slice:
    """Keys from `start` up to `stop`, and as many more as make their number one of a few."""
    size, step = stop - start, _BLOCK
    while size > _STEPS * step:
        step *= 2
    size = min(-(-size // step) * step, most)
    start = min(start, most - size)
    return slice(start, start + size)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> Tensor:
    """Weighted sums of v, by the softmax of scaled dot products with the keys that each query sees. Products are made
    in bfloat16, the softmax and sums over blocks in float32.

    Args:
        q: [B, T, heads, d]. k: [B, T, kv_heads, d]. v: [B, T, kv_heads, e]. Each is shared by heads / kv_heads queries.

    Returns:
        [B, T, heads, e] in the dtype of v.
    """
    scale = q.shape[-1] ** -0.5 if config.scale is None else config.scale
    shared = q.shape[2] // k.shape[2]
    k, v = (x if shared == 1 else x.repeat_interleave(shared, 2) for x in (k, v))
    found: Tensor = _Blocked.apply(q, k, v, scale, spans.layout(q.shape[2], config.window))  # type: ignore[no-untyped-call]
    return found.to(v.dtype)


class _Blocked(torch.autograd.Function):
    """Queries, and what is made for them, lie block by block, so that a product finds them in one piece."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, layout: Layout) -> Tensor:
        length, kept = q.shape[1], []
        q, k, v = (_in_blocks(x, size) for x, size in ((q, layout.block), (k, layout.whole), (v, layout.whole)))
        q.mul_(scale)
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        for part in layout.parts:
            weights = _weights(_block(q, part), _keys_of(k, part), part)
            torch.bmm(weights, _keys_of(v, part), out=_block(out, part))
            if layout.keeps:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.layout, ctx.length = scale, layout, length
        return _in_rows(out, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad, d_q = _in_blocks(grad, ctx.layout.block), torch.empty_like(q)
        d_k, d_v = torch.zeros(k.shape), torch.zeros(v.shape)
        for i, part in enumerate(ctx.layout.parts):
            q_, k_, v_, grad_ = _block(q, part), _keys_of(k, part), _keys_of(v, part), _block(grad, part)
            weights = kept[i] if kept else _weights(q_, k_, part)
            _add(d_v, part, weights.mT @ grad_)
            d_scores = torch._softmax_backward_data(grad_ @ v_.mT, weights, -1, weights.dtype)
            torch.bmm(d_scores, k_, out=_block(d_q, part))
            _add(d_k, part, d_scores.mT @ q_)
        d_q.mul_(ctx.scale)
        return (*(_in_rows(d, ctx.length) for d in (d_q, d_k, d_v)), None, None)


def _in_blocks(x: Tensor, size: int) -> Tensor:
    """x [B, T, heads, d] -> bfloat16 [blocks, B, heads, size, d], the last block filled up with zeros."""
    if extra := -x.shape[1] % size:
        x = F.pad(x, (0, 0, 0, 0, 0, extra))
    x = x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4)
    return torch.empty(x.shape, dtype=torch.bfloat16).copy_(x)


def _in_rows(x: Tensor, length: int) -> Tensor:
    """[blocks, B, heads, size, d] -> bfloat16 [B, length, heads, d]."""
    x = x.permute(1, 0, 3, 2, 4)
    made = torch.empty(x.shape, dtype=torch.bfloat16).copy_(x).flatten(1, 2)
    return made[:, :length]


def _block(x: Tensor, part: Part) -> Tensor:
    """A part's queries of x [blocks, B, heads, block, d], in place: [rows * heads, block, d]."""
    return x[part.block, part.rows].flatten(0, 1)


def _keys_of(x: Tensor, part: Part) -> Tensor:
    """A part's keys of x [1, B, heads, T, d], in one piece: [rows * heads, keys, d]."""
    return x[0, part.rows, :, part.keys].flatten(0, 1).contiguous()


def _add(total: Tensor, part: Part, found: Tensor) -> None:
    """Adds what a part has found for its keys, [rows * heads, keys, d], to the whole [1, B, heads, T, d]."""
    some = total[0, part.rows, :, part.keys]
    some += found.view(some.shape)


def _weights(q: Tensor, k: Tensor, part: Part) -> Tensor:
    """Softmax of the scores of q [rows * heads, queries, d] with k [rows * heads, keys, d]."""
    scores = q @ k.mT
    for columns, mask in part.hidden:
        scores.unflatten(0, (len(mask), -1))[..., columns] += mask
    return scores.softmax(-1)
