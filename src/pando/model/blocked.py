"""Causal attention in bfloat16 on a CPU, with gradients: block by block of queries, as in FlashAttention-2
(arXiv 2307.08691), by plain tensor operations.

torch's own kernel takes up to twice as long, in float32 and in bfloat16, and in the latter it keeps a product prepared
for each length that it meets. Here, lengths are filled up to whole multiples of `_SIDE`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEAST = 2048  # queries of all heads, from which on it is faster than torch's
_SIDE, _BLOCK, _BLOCKS = 64, 128, 8  # tokens of a block, unless more than 8 of them were needed
_NUMBERS = 1 << 21  # scores that are held at a time, about
_LOG2E = math.log2(math.e)


def pays(q: Tensor) -> bool:
    """Whether it is faster than torch's kernel for q [B, heads, T, d]."""
    return q.shape[2] >= _BLOCK and q.shape[:3].numel() >= _LEAST


@torch.compiler.disable  # type: ignore[untyped-decorator]
def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Weighted sums of v, by the softmax of scaled dot products with the keys up to each query's own. Products are made
    in bfloat16, the softmax and sums over blocks in float32.

    Args:
        q: [B, heads, T, d]. k: [B, kv_heads, T, d]. v: [B, kv_heads, T, e]. Each is shared by heads / kv_heads queries.

    Returns:
        bfloat16 [B, heads, T, e].
    """
    length, shared = q.shape[2], q.shape[1] // k.shape[1]
    k, v = (x if shared == 1 else x.repeat_interleave(shared, 1) for x in (k, v))
    flat = [x.flatten(0, 1).bfloat16() for x in (q, k, v)]
    if length % _SIDE:  # no query of its own sees what is filled up
        flat = [F.pad(x, (0, 0, 0, -length % _SIDE)) for x in flat]
    found: Tensor = _Causal.apply(*flat, scale)  # type: ignore[no-untyped-call]
    rows: Tensor = found[:, :length].unflatten(0, q.shape[:2])
    return rows


class _Causal(torch.autograd.Function):
    """Of bfloat16 q and k [N, T, d] and v [N, T, e]. Only the log of each query's denominator is kept, to base 2, as
    all exponentials are here: those are three times as fast."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(v)
        logs = torch.empty(*q.shape[:2], 1)
        for some, rows, keys in _parts(q):
            scores = (q[some, rows] @ k[some, keys].mT).float()
            size = rows.stop - rows.start
            scores[..., -size:] += torch.full((size, size), -torch.inf).triu_(1)
            most = scores.amax(-1, keepdim=True).mul_(-scale * _LOG2E)
            weights = torch.add(most, scores, alpha=scale * _LOG2E, out=scores).exp2_()
            total = weights.sum(-1, keepdim=True)
            out[some, rows] = weights.bfloat16() @ v[some, keys] / total
            logs[some, rows] = most - total.log2()
        ctx.save_for_backward(q, k, v, out, logs)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logs = ctx.saved_tensors
        scale, grad = ctx.scale, grad.contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros(k.shape), torch.zeros(v.shape)
        for some, rows, keys in _parts(q):
            q_, k_, v_, grad_ = q[some, rows], k[some, keys], v[some, keys], grad[some, rows]
            scores = (q_ @ k_.mT).float()
            weights = torch.add(logs[some, rows], scores, alpha=scale * _LOG2E, out=scores).exp2_().tril_(rows.start)
            mean = (grad_.float() * out[some, rows]).sum(-1, keepdim=True)
            d_v[some, keys] += weights.bfloat16().mT @ grad_
            d_scores = (grad_ @ v_.mT).float().sub_(mean).mul_(weights).mul_(scale).bfloat16()
            d_q[some, rows] = d_scores @ k_
            d_k[some, keys] += d_scores.mT @ q_
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), None


def _parts(q: Tensor) -> list[tuple[slice, slice, slice]]:
    """Some of N, a block of their queries, and the keys up to its end."""
    count, length = q.shape[:2]
    block = max(_BLOCK, -(-length // (_BLOCKS * _SIDE)) * _SIDE)
    some = max(1, _NUMBERS // (block * length))
    return [
        (slice(n, n + some), slice(start, min(start + block, length)), slice(min(start + block, length)))
        for n in range(0, count, some)
        for start in range(0, length, block)
    ]
