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
_BLOCK = 128  # queries of a block
_STEPS = 8  # keys of a block are a multiple of a power of two, so many times at most
_NUMBERS = 1 << 20  # scores that are held at a time, about


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


class Spans:
    """Which keys the queries of rows [B, T] see: each those from one place up to another.

    Args:
        first: int64 [B, T], of the first key that each query sees. It is none after the query itself.
        end: int64 [B, T], behind the last one, which is none before the query itself.
    """

    def __init__(self, first: Tensor, end: Tensor) -> None:
        self.length = first.shape[1]
        self.whole = -(-self.length // _BLOCK) * _BLOCK  # tokens of a row, filled up with ones that see themselves
        extra = torch.arange(self.length, self.whole).expand(len(first), -1)
        self._first, self._end = torch.cat((first, extra), 1), torch.cat((end, extra + 1), 1)
        self._parts: dict[int, list[Part]] = {}

    def parts(self, heads: int) -> list[Part]:
        """The parts of which the rows consist, for so many heads."""
        if heads not in self._parts:
            some = max(1, _NUMBERS // (heads * _BLOCK * self.whole))
            self._parts[heads] = [
                self._part(slice(row, row + some), block)
                for row in range(0, len(self._first), some)
                for block in range(self.whole // _BLOCK)
            ]
        return self._parts[heads]

    def _part(self, rows: slice, block: int) -> Part:
        queries = slice(block * _BLOCK, (block + 1) * _BLOCK)
        first, end = self._first[rows, queries], self._end[rows, queries]
        keys = _widened(int(first.min()), int(end.max()), self.whole)
        seen_by_all = max(keys.start, min(int(first.max()), keys.stop)), min(int(end.min()), keys.stop)
        edges = [(keys.start, seen_by_all[0]), (seen_by_all[1], keys.stop)]
        if seen_by_all[0] >= seen_by_all[1]:
            edges = [(keys.start, keys.stop)]
        if (first == first[0]).all() and (end == end[0]).all():
            first, end = first[:1], end[:1]
        hidden = []
        for start, stop in edges:
            if start < stop:
                places = torch.arange(start, stop)
                blind = (places < first[..., None]) | (places >= end[..., None])
                mask = torch.zeros(blind.shape, dtype=torch.bfloat16).masked_fill_(blind, -torch.inf)
                hidden.append((slice(start - keys.start, stop - keys.start), mask[:, None]))
        return Part(rows, block, keys, hidden)


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
    found: Tensor = _Blocked.apply(q, k, v, scale, spans)  # type: ignore[no-untyped-call]
    return found.to(v.dtype)


class _Blocked(torch.autograd.Function):
    """Queries, and what is made for them, lie block by block, so that a product finds them in one piece."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Spans) -> Tensor:
        rows, length, heads, _ = q.shape
        q, k, v = _in_blocks(q, _BLOCK), _in_blocks(k, spans.whole)[0], _in_blocks(v, spans.whole)[0]
        q.mul_(scale)
        out, kept = q.new_empty(*q.shape[:-1], v.shape[-1]), []
        for part in spans.parts(heads):
            weights = _weights(q, k, part)
            torch.bmm(weights, _of(v, part.rows, part.keys), out=out[part.block, part.rows].flatten(0, 1))
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.spans, ctx.length = scale, spans, length
        return _in_rows(out, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        grad = _in_blocks(grad, _BLOCK)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros(k.shape), torch.zeros(v.shape)
        for part, weights in zip(ctx.spans.parts(q.shape[2]), kept, strict=True):
            rows, keys = part.rows, part.keys
            q_, grad_ = (x[part.block, rows].flatten(0, 1) for x in (q, grad))
            k_, v_ = _of(k, rows, keys), _of(v, rows, keys)
            d_v[rows, :, keys] += (weights.mT @ grad_).view(-1, *d_v[0, :, keys].shape)
            d_scores = torch._softmax_backward_data(grad_ @ v_.mT, weights, -1, weights.dtype)
            torch.bmm(d_scores, k_, out=d_q[part.block, rows].flatten(0, 1))
            d_k[rows, :, keys] += (d_scores.mT @ q_).view(-1, *d_k[0, :, keys].shape)
        d_q.mul_(ctx.scale)
        return (*(_in_rows(d, ctx.length) for d in (d_q, d_k[None], d_v[None])), None, None)


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


def _of(x: Tensor, rows: slice, places: slice) -> Tensor:
    """Of x [B, heads, T, d] some, [rows * heads, places, d]."""
    return x[rows, :, places].flatten(0, 1).contiguous()


def _weights(q: Tensor, k: Tensor, part: Part) -> Tensor:
    """Softmax of the scores of q [rows * heads, queries, d] with k [rows * heads, keys, d]."""
    scores = q[part.block, part.rows].flatten(0, 1) @ _of(k, part.rows, part.keys).mT
    for columns, mask in part.hidden:
        scores.unflatten(0, (-1, q.shape[2]))[..., columns] += mask
    return scores.softmax(-1)
