"""Attention in training on a CPU: in float32, whatever number its inputs have, but for long causal documents."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from pando.model import blocked
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


@pytest.mark.parametrize(
    ("heads", "shared", "length", "size", "scale"),
    [(4, 1, 512, 16, None), (8, 4, 300, 24, 0.3), (1, 1, 2100, 16, None), (2, 2, 1029, 8, None)],
)
def test_blocked_attention_is_attention(heads: int, shared: int, length: int, size: int, scale: float | None) -> None:
    """Long causal documents, in bfloat16: values and gradients within one per cent of float64."""
    config = AttentionConfig(heads=heads, kv_heads=heads // shared, head_dim=16, rope=None, scale=scale)
    draw = torch.Generator().manual_seed(0)
    shapes = ((heads, 16), (heads // shared, 16), (heads // shared, size))
    parts = [torch.randn(2, n, length, d, generator=draw).bfloat16().requires_grad_() for n, d in shapes]
    assert blocked.pays(parts[0])
    found = attention(config, *parts, causal=True)
    wide = [part.detach().double().requires_grad_() for part in parts]
    wanted = F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=True, scale=scale)
    weights = torch.randn(wanted.shape, generator=draw).bfloat16()
    ours = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((wanted * weights).sum(), wide)
    assert found.dtype == torch.bfloat16
    for one, other in zip((found, *ours), (wanted, *theirs), strict=True):
        assert float(((one - other).norm() / other.norm()).detach()) < 0.01


def test_blocked_attention_does_not_look_ahead() -> None:
    """A later token changes nothing of what is before it, not a bit, however large its score."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 8, 300, 16, generator=draw).bfloat16().requires_grad_() for _ in range(3))

    def told() -> list[torch.Tensor]:
        found = blocked.causal_attention(q, k, v, 1.0)[:, :, :200]
        return [found, *torch.autograd.grad(found.float().square().sum(), (q, k, v))]

    before = told()
    with torch.no_grad():
        k[:, :, 200:] *= 1e4
        v[:, :, 200:] *= 1e4
    assert all(torch.equal(one, other) for one, other in zip(before, told(), strict=True))
