"""Attention in training on a CPU: in float32, whatever number its inputs have."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from pando.model.attention import attention
from pando.model.config import AttentionConfig


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_products_in_training_are_in_float32(autocast: bool, masked: bool) -> None:
    config = AttentionConfig(heads=4, kv_heads=2, head_dim=16, rope=None)
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, 11, 16, generator=draw).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    mask = torch.randn(1, 4, 11, 11, generator=draw).bfloat16() if masked else None
    inside = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    with inside:
        found = attention(config, *parts, mask, causal=not masked)
    wide = [part.detach().float().requires_grad_() for part in parts]
    wanted = F.scaled_dot_product_attention(
        *wide, attn_mask=None if mask is None else mask.float(), is_causal=not masked, enable_gqa=True
    )
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted.bfloat16())
    ours = torch.autograd.grad(found.float().square().sum(), parts)
    theirs = torch.autograd.grad(wanted.bfloat16().float().square().sum(), wide)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(ours, theirs, strict=True))
    assert attention(config, *(part.detach() for part in parts), causal=True).dtype == torch.bfloat16
