"""A mixture of experts: a router, experts as stacks of matrices, perhaps one that all tokens go through.

No token is dropped: tokens are sorted by expert, and each expert multiplies what came to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.config import ExpertsConfig, RouterConfig
from pando.model.context import Context
from pando.model.layers import ACTIVATIONS, Mlp


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


class ExpertWeights(nn.Module):
    """The experts' matrices, one stack for each place: gate and up [E, hidden, D], down [E, D, hidden]."""

    def __init__(self, d_model: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate, self.up = (nn.Parameter(torch.empty(config.count, config.hidden, d_model)) for _ in range(2))
        self.down = nn.Parameter(torch.empty(config.count, d_model, config.hidden))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [M, D], sorted by expert, of which each has so many (`counts` [E]) -> [M, D]."""
        if x.is_cuda and x.dtype == torch.bfloat16:
            ends = counts.cumsum(0).int()
            inner = self.activation(torch._grouped_mm(x, self.gate.mT, ends)) * torch._grouped_mm(x, self.up.mT, ends)
            grouped: Tensor = torch._grouped_mm(inner, self.down.mT, ends)
            return grouped
        parts = []
        for expert, part in enumerate(x.split(counts.tolist())):
            if len(part):
                inner = self.activation(F.linear(part, self.gate[expert])) * F.linear(part, self.up[expert])
                parts.append(F.linear(inner, self.down[expert]))
        return torch.cat(parts)


class Experts(nn.Module):
    """The mixture in the place of a feed-forward layer."""

    def __init__(self, layer: int, d_model: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        self.router = Router(d_model, config.count, config.router)
        self.experts = ExpertWeights(d_model, config)
        self.shared = Mlp(f"layers.{layer}.mlp.shared", d_model, config.shared_mlp) if config.shared else None
        self.shared_gate = nn.Linear(d_model, 1, bias=False) if config.shared_gate else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        flat = x.flatten(0, -2)
        scores, weights, chosen = self.router(flat)
        if ctx.routed is not None:
            ctx.routed(self.layer, scores, chosen)
        experts = chosen.flatten()
        order = experts.argsort(stable=True)
        tokens = order // self.config.router.top_k
        number = self.experts.gate.dtype
        out = self.experts(flat.to(number)[tokens], torch.bincount(experts, minlength=self.config.count))
        out = out.to(x.dtype) * weights.flatten()[order, None].to(x.dtype)
        mixed = torch.zeros_like(flat).index_add_(0, tokens, out).view(x.shape)
        if self.shared is None:
            return mixed
        common: Tensor = self.shared(x, ctx)
        if self.shared_gate is not None:
            common = common * self.shared_gate(x.to(self.shared_gate.weight.dtype)).sigmoid()
        return mixed + common
