"""A mixture of experts: a router, experts as stacks of matrices, perhaps one that all tokens go through.

No token is dropped: tokens are sorted by expert, and each expert multiplies what came to it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pando.model.config import ExpertsConfig, RouterConfig
from pando.model.context import Context
from pando.model.layers import ACTIVATIONS, ExpertProjection, Mlp, product_dtype

_BLOCK = 64  # rows, see `_sorted`


class Router(nn.Module):
    """Scores experts in float32. `bias` counts for the choice alone, and no gradient reaches it."""

    def __init__(self, d_model: int, count: int, config: RouterConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(count, d_model))
        self.bias = nn.Parameter(torch.zeros(count), requires_grad=False) if config.bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D] -> scores [N, experts], and of each token's experts the weights [N, k] and the numbers [N, k]."""
        config = self.config
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())
        scores = logits.sigmoid() if config.scores == "sigmoid" else logits.softmax(-1)
        ranked = scores if self.bias is None else scores + self.bias
        if config.groups > 1:
            grouped = ranked.unflatten(-1, (config.groups, -1))
            best = grouped.topk(config.best, dim=-1)[0].sum(-1).topk(config.top_groups, dim=-1)[1]
            open_ = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=x.device).scatter_(1, best, True)
            ranked = grouped.masked_fill(~open_[..., None], -torch.inf).flatten(-2)
        chosen = ranked.topk(config.top_k, dim=-1)[1]
        weights = scores.gather(-1, chosen)
        if config.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return scores, weights * config.scale, chosen


def _sorted(chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where tokens go whose experts are chosen [N, k]: rows sorted by expert.

    On a CPU, large groups are filled up to multiples of `_BLOCK` rows (with the first token, and nobody asks for what
    comes of it): libraries prepare their products in bfloat16 for each shape that they meet, which takes longer than
    the product.

    Returns:
        The token of each row [M], the rows of each expert [experts], and the row of each choice [N, k].
    """
    experts = chosen.flatten()
    order, counts = experts.argsort(stable=True), torch.bincount(experts, minlength=count)
    rows, size = torch.arange(len(order), device=order.device), len(order)
    if order.device.type == "cpu" and size >= 8 * _BLOCK * count:
        whole = (counts + _BLOCK - 1) // _BLOCK * _BLOCK
        ahead = (whole - counts).cumsum(0) - (whole - counts)  # rows filled in before each group
        rows, counts, size = rows + ahead.repeat_interleave(counts), whole, int(whole.sum())
    tokens = order.new_zeros(size).index_copy(0, rows, order // chosen.shape[1])
    return tokens, counts, torch.empty_like(order).index_copy(0, order, rows).view_as(chosen)


class ExpertLayers(nn.Module):
    """The experts themselves: down(act(gate(x)) * up(x)), a stack of matrices for each of the three."""

    def __init__(self, site: str, d_model: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = ExpertProjection(f"{site}.gate", config.count, d_model, config.hidden)
        self.up = ExpertProjection(f"{site}.up", config.count, d_model, config.hidden)
        self.down = ExpertProjection(f"{site}.down", config.count, config.hidden, d_model)

    def forward(self, x: Tensor, counts: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        """x [M, D], sorted by expert -> [M, D]."""
        inner = self.activation(self.gate(x, counts, tokens, ctx)) * self.up(x, counts, tokens, ctx)
        out: Tensor = self.down(inner, counts, tokens, ctx)
        return out


class _Dispatch(torch.autograd.Function):
    """Tokens to the rows of their experts. Both directions gather: to scatter takes several times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
        """x [N, D], the token of each row [M], the rows of each token [N, k] -> [M, D]."""
        ctx.save_for_backward(rows)
        return x.index_select(0, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return F.embedding_bag(rows, grad, mode="sum"), None, None


class _Combine(torch.autograd.Function):
    """Weighted sums of the rows of each token: the way back of `_Dispatch`."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, weights: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
        """out [M, D], of each token the weights [N, k] and the rows [N, k], the token of each row [M] -> [N, D]."""
        ctx.save_for_backward(out if ctx.needs_input_grad[1] else None, weights, tokens, rows)
        return F.embedding_bag(rows, out, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        out, weights, tokens, rows = ctx.saved_tensors
        sent, places = grad.index_select(0, tokens), rows.flatten()
        d_weights = None if out is None else (sent * out).sum(-1).index_select(0, places).view_as(weights)
        each = weights.new_zeros(len(tokens)).index_copy_(0, places, weights.flatten())  # nothing for rows filled in
        return sent.mul_(each[:, None]), d_weights, None, None


class Experts(nn.Module):
    """The mixture in the place of a feed-forward layer."""

    def __init__(self, site: str, layer: int, d_model: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        self.router = Router(d_model, config.count, config.router)
        self.experts = ExpertLayers(f"{site}.experts", d_model, config)
        self.shared = Mlp(f"{site}.shared", d_model, config.shared_mlp) if config.shared else None
        self.shared_gate = nn.Linear(d_model, 1, bias=False) if config.shared_gate else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        flat = x.flatten(0, -2)
        scores, weights, chosen = self.router(flat)
        if ctx.routed is not None:
            ctx.routed(self.layer, scores, chosen)
        tokens, counts, rows = _sorted(chosen, self.config.count)
        flat = flat.to(product_dtype(self.experts.gate.weight))
        sent: Tensor = _Dispatch.apply(flat, tokens, rows)  # type: ignore[no-untyped-call]
        out = self.experts(sent, counts, tokens, ctx)
        mixed: Tensor = _Combine.apply(out, weights.to(out.dtype), tokens, rows)  # type: ignore[no-untyped-call]
        mixed = mixed.to(x.dtype).view(x.shape)
        if self.shared is None:
            return mixed
        common: Tensor = self.shared(x, ctx)
        if self.shared_gate is not None:
            common = common * self.shared_gate(x.to(self.shared_gate.weight.dtype)).sigmoid()
        return mixed + common
