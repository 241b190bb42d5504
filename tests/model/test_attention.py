"""Attention in training on a CPU: in float32, whatever number its inputs have, but for what goes block by block."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from pando.model import blocked
from pando.model.attention import attention
from pando.model.config import AttentionConfig
from pando.model.context import PackedContext, RowContext, _document_mask


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


def rows(length: int) -> torch.Tensor:
    """int64 [2, length]: documents of many lengths in the first row, one in the second."""
    lengths = torch.tensor([1, 5, 130, 64, 200, 300, 31, length])
    return torch.stack((torch.arange(8).repeat_interleave(lengths)[:length], torch.zeros(length, dtype=torch.int64)))


def wanted(config: AttentionConfig, parts: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Attention in float64 of q, k and v [B, T, heads, d], with a mask [B, T, T]."""
    heads = [part.transpose(1, 2) for part in parts]
    found = F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None], enable_gqa=True, scale=config.scale)
    return found.transpose(1, 2)


def drawn(config: AttentionConfig, length: int, size: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((config.heads, 16), (config.kv_heads, 16), (config.kv_heads, size))
    return [torch.randn(2, length, n, d, generator=draw).bfloat16().requires_grad_() for n, d in shapes]


@pytest.mark.parametrize("kept", [0, 10_000])
@pytest.mark.parametrize("kind", ["causal", "window", "prefix", "both", "both, window"])
@pytest.mark.parametrize(
    ("heads", "shared", "length", "size", "scale"),
    [(4, 1, 512, 16, None), (8, 4, 300, 24, 0.3), (1, 1, 1100, 16, None), (2, 2, 1029, 8, None)],
)
def test_blocked_attention_is_attention(
    heads: int,
    shared: int,
    length: int,
    size: int,
    scale: float | None,
    kind: str,
    kept: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16: values and gradients within one per cent of float64, whether weights are kept or made again."""
    monkeypatch.setattr(blocked, "_KEPT", kept)
    window = 50 if "window" in kind else None
    config = AttentionConfig(heads, heads // shared, 16, rope=None, scale=scale, window=window)
    tokens = documents = rows(length)
    told = None
    if kind == "prefix":
        told = RowContext(tokens, documents).positions < 20
    elif kind.startswith("both"):
        told = torch.ones(2, length, dtype=torch.bool)
    parts = drawn(config, length, size)
    assert blocked.pays(config, *parts)
    found = RowContext(tokens, documents, prefix=told).attend(0, config, *parts)
    mask = _document_mask(documents, told, window)[:, 0]
    wide = [part.detach().double().requires_grad_() for part in parts]
    meant = wanted(config, wide, mask)
    weights = torch.randn(meant.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((meant * weights).sum(), wide)
    assert found.dtype == torch.bfloat16
    for one, other in zip((found, *ours), (meant, *theirs), strict=True):
        assert float(((one - other).norm() / other.norm()).detach()) < 0.01


@pytest.mark.parametrize("both_ways", [False, True])
def test_packed_documents_are_blocked_as_rows_are(both_ways: bool) -> None:
    config = AttentionConfig(heads=4, kv_heads=4, head_dim=16, rope=None)
    lengths = [1, 5, 130, 64, 200, 300]
    documents = torch.arange(6).repeat_interleave(torch.tensor(lengths))[None]
    parts = [part[:1] for part in drawn(config, sum(lengths), 16)]
    packed = PackedContext(lengths, both_ways=both_ways).attend(0, config, *(part[0] for part in parts))
    row = RowContext(documents, documents, both_ways=both_ways).attend(0, config, *parts)
    assert blocked.pays(config, *parts) and torch.equal(packed, row[0])


def test_blocked_attention_does_not_look_elsewhere() -> None:
    """Later tokens and other documents change nothing, not a bit, however large their scores."""
    config = AttentionConfig(heads=8, kv_heads=8, head_dim=16, rope=None, scale=1.0)
    q, k, v = drawn(config, 300, 16)
    documents = (torch.arange(300) >= 90).long().expand(2, -1)

    def told() -> list[torch.Tensor]:
        found = RowContext(documents, documents).attend(0, config, q, k, v)[:, 90:200]
        return [found, *(d[:, 90:200] for d in torch.autograd.grad(found.float().square().sum(), (q, k, v)))]

    before = told()
    with torch.no_grad():
        for x in (k, v):
            x[:, 200:] *= 1e4
            x[:, :90] *= 1e4
    assert all(torch.equal(one, other) for one, other in zip(before, told(), strict=True))


def test_the_sizes_of_products_are_few() -> None:
    """However documents fall, for libraries prepare their products for each size."""
    draw = torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(50):
        starts = torch.rand(1, 4096, generator=draw) < 0.003
        starts[:, 0] = True
        first = torch.where(starts, torch.arange(4096), 0).cummax(1)[0]
        layout = blocked.Spans(first, torch.zeros_like(first)).layout(8, None)
        sizes |= {part.keys.stop - part.keys.start for part in layout.parts}
    assert len(sizes) <= 16 and all(size % 128 == 0 for size in sizes)
