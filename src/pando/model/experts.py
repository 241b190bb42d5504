"""A mixture of experts: a router, experts as stacks of matrices, perhaps one that all tokens go through.

No token is dropped: tokens are sorted by expert, and each expert multiplies what came to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.config import ExpertsConfig, RouterConfig
from pando.model.context import Context
from pando.model.layers import ACTIVATIONS, ExpertProjection, Mlp

_BLOCK = 64  # rows, see `_whole_blocks`


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


def _whole_blocks(order: Tensor, shares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """On a CPU, large groups are filled up to multiples of `_BLOCK` rows (the first token's, with a share of nothing):
    libraries prepare their products in bfloat16 for each shape that they meet, which takes longer than the product.

    Args:
        order: [M] places of the chosen experts, sorted by expert. shares: [M] what each counts. counts: [experts].
    """
    if order.device.type != "cpu" or order.shape[0] < 8 * _BLOCK * counts.shape[0]:
        return order, shares, counts
    whole = (counts + _BLOCK - 1) // _BLOCK * _BLOCK
    start = whole.cumsum(0) - whole
    group = torch.repeat_interleave(counts)
    places = torch.arange(order.shape[0]) - (counts.cumsum(0) - counts)[group] + start[group]
    size = int(whole.sum())
    return (
        order.new_zeros(size).index_copy(0, places, order),
        shares.new_zeros(size).index_copy(0, places, shares),
        whole,
    )


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
        experts = chosen.flatten()
        order = experts.argsort(stable=True)
        number = self.experts.gate.weight.dtype
        counts = torch.bincount(experts, minlength=self.config.count)
        order, shares, counts = _whole_blocks(order, weights.flatten().index_select(0, order), counts)
        tokens = order // self.config.router.top_k
        # not by brackets, whose gradient is ten times slower to sum up
        out = self.experts(flat.to(number).index_select(0, tokens), counts, tokens, ctx)
        out = out.to(x.dtype) * shares[:, None].to(x.dtype)
        mixed = torch.zeros_like(flat).index_add_(0, tokens, out).view(x.shape)
        if self.shared is None:
            return mixed
        common: Tensor = self.shared(x, ctx)
        if self.shared_gate is not None:
            common = common * self.shared_gate(x.to(self.shared_gate.weight.dtype)).sigmoid()
        return mixed + common
