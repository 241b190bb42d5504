"""Tokens go to the rows of their experts and back, and each group multiplies its own, filled up or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pando.model import experts
from pando.model.context import RowContext
from pando.model.layers import grouped_product
from pando.model.upcycle import mixture_config
from tests.model import tiny


@pytest.mark.parametrize("block", [2, 7])
def test_whole_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(mixture_config(tiny.config(), 4, 2)).requires_grad_()
    tokens = torch.randint(0, 320, (2, 150), generator=torch.Generator().manual_seed(0))
    counts: list[int] = []
    forward = experts.ExpertProjection.forward

    def noted(self: Any, x: Any, groups: Any, *more: Any) -> Any:
        counts.extend(groups.tolist())
        return forward(self, x, groups, *more)

    monkeypatch.setattr(experts.ExpertProjection, "forward", noted)
    found = []
    for size in (10_000, block):
        monkeypatch.setattr(experts, "_BLOCK", size)
        counts.clear()
        logits = model.head(model(tokens, RowContext(tokens)))
        found.append((logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))))
        assert any(count % block for count in counts) == (size != block)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _routes(filled: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The token of each row, `filled` of which nobody asks for, and the rows of each of five tokens, two apiece."""
    order = torch.randperm(10 + filled, generator=torch.Generator().manual_seed(1))
    rows = order[:10].view(5, 2)
    tokens = torch.zeros(10 + filled, dtype=torch.int64)
    tokens[rows.flatten()] = torch.arange(5).repeat_interleave(2)
    return tokens, rows


@pytest.mark.parametrize("filled", [0, 3])
def test_dispatch_and_combine_have_their_gradients(filled: int) -> None:
    """Against the sum written out, and against differences; rows that are filled in count for nothing."""
    draw = torch.Generator().manual_seed(0)
    tokens, rows = _routes(filled)
    x = torch.randn(5, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(len(tokens), 1, generator=draw, dtype=torch.float64)

    def whole(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        sent = experts._Dispatch.apply(x, tokens, rows)  # type: ignore[no-untyped-call]
        made: torch.Tensor = experts._Combine.apply(sent * factors, weights, tokens, rows)  # type: ignore[no-untyped-call]
        return made

    wanted = (factors[rows, 0] * weights).sum(1, keepdim=True) * x
    torch.testing.assert_close(whole(x, weights), wanted)
    assert torch.autograd.gradcheck(whole, (x, weights))


def test_combining_rounds_once() -> None:
    tokens, rows = _routes(3)
    draw = torch.Generator().manual_seed(0)
    out = torch.randn(13, 64, generator=draw).bfloat16()
    weights = torch.rand(5, 2, generator=draw).bfloat16()
    found = experts._Combine.apply(out, weights, tokens, rows)  # type: ignore[no-untyped-call]
    exact = (out.double()[rows] * weights.double()[..., None]).sum(1)
    assert ((found.double() - exact).abs() <= (exact.bfloat16().double() - exact).abs()).all()


@pytest.mark.parametrize("frozen", ["neither", "weights", "inputs"])
def test_a_grouped_product_is_each_groups_own(frozen: str) -> None:
    """Values and gradients, a group of nothing included, where only one side learns too."""
    draw = torch.Generator().manual_seed(0)
    x, weights = torch.randn(12, 5, generator=draw), torch.randn(4, 3, 5, generator=draw)
    learnt = [part.requires_grad_() for name, part in (("inputs", x), ("weights", weights)) if name != frozen]
    counts = torch.tensor([4, 0, 7, 1])
    found = grouped_product(x, weights, counts)
    wanted = torch.cat([F.linear(part, own) for part, own in zip(x.split(counts.tolist()), weights, strict=True)])
    torch.testing.assert_close(found, wanted)
    factors = torch.randn(found.shape, generator=draw)
    ours, theirs = (torch.autograd.grad((y * factors).sum(), learnt) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs)
