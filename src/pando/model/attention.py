"""Attention itself, and the masks that contexts are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pando.model import blocked
from pando.model.config import AttentionConfig


def attention(
    config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Scaled dot products, softmax, weighted sum.

    Args:
        q: [B, heads, T, d]. k: [B, kv_heads, L, d]. v: [B, kv_heads, L, e]. Each is shared by heads / kv_heads queries.
        mask: broadcast to [B, heads, T, L]: bool, which keys a query sees, or added to the scores. None: all.
        causal: each query sees the keys up to its own (T = L); there is no mask then.

    Returns:
        [B, heads, T, e].
    """
    if blocked.learns_in_bfloat16(q, k, v):
        # In bfloat16 the backward pass of torch keeps a kernel for each shape that it meets, gigabytes in the end, and
        # wins nothing.
        with torch.autocast("cpu", enabled=False):
            mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
            return attention(config, q.float(), k.float(), v.float(), mask, causal=causal).to(v.dtype)
    if config.softcap is None:
        found: Tensor = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=config.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return found
    shared = q.unflatten(1, (k.shape[1], -1))  # [B, kv_heads, group, T, d]
    scale = q.shape[-1] ** -0.5 if config.scale is None else config.scale
    scores = (shared * scale) @ k[:, :, None].mT
    scores = (config.softcap * torch.tanh(scores.float() / config.softcap)).flatten(1, 2)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).to(v.dtype).unflatten(1, shared.shape[1:3])
    mixed: Tensor = weights @ v[:, :, None]
    return mixed.flatten(1, 2)


def seen(queries: Tensor, keys: Tensor, window: int | None = None, *, both_ways: bool = False) -> Tensor:
    """bool [..., T, L]: keys at positions [..., L] that queries at positions [..., T] see: those up to their own
    (`both_ways`: and behind it), no more than `window` - 1 away."""
    back = queries[..., :, None] - keys[..., None, :]
    if both_ways:
        back = back.abs()
    visible = back >= 0
    return visible if window is None else visible & (back < window)
