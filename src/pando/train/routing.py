"""Where tokens went in a mixture of experts: what is counted, and what spreads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pando.model.config import ExpertsConfig, ModelConfig
from pando.model.experts import Router
from pando.train.muon import first_row, local_part

BIAS_RATE = 1e-3  # of the biases that balance, a step (DeepSeek-V3, arXiv 2412.19437)


class Routing:
    """Collects what the routers of one forward pass did (`Context.routed`).

    Args:
        used: bool [N], the slots that are no padding; others are not counted.
    """

    def __init__(self, config: ModelConfig, used: Tensor) -> None:
        mixtures = [(i, layer.mlp) for i, layer in enumerate(config.layers)]
        self._counts = {i: mlp.count for i, mlp in mixtures if isinstance(mlp, ExpertsConfig)}
        self._used = used
        self._found: dict[int, tuple[Tensor, Tensor]] = {}  # a block that is computed again tells the same again

    def __call__(self, layer: int, scores: Tensor, chosen: Tensor) -> None:
        """scores [N, experts], chosen [N, k]."""
        weights = self._used.float()
        share = (scores / scores.sum(-1, keepdim=True).clamp_min(1e-20) * weights[:, None]).sum(0)
        loads = torch.zeros(self._counts[layer], device=scores.device)
        loads.index_add_(0, chosen.flatten(), weights.repeat_interleave(chosen.shape[1]))
        self._found.setdefault(layer, (share, loads))

    @property
    def loads(self) -> Tensor:
        """How many tokens each expert got: float32 [layers with experts, most experts]."""
        most = max(self._counts.values())
        rows = [nn.functional.pad(loads, (0, most - len(loads))) for _, loads in self._in_order()]
        return torch.stack(rows)

    def loss(self) -> Tensor:
        """The load-balancing loss of Switch Transformers (arXiv 2101.03961, equation 4), the mean over layers: 1 where
        tokens and scores are spread evenly. Its gradient goes through the scores."""
        losses = []
        for share, loads in self._in_order():
            total = loads.sum().clamp_min(1)
            tokens = self._used.sum().clamp_min(1)
            losses.append(len(loads) * (loads / total * (share / tokens)).sum())
        return torch.stack(losses).mean()

    def _in_order(self) -> list[tuple[Tensor, Tensor]]:
        return [self._found[layer] for layer in sorted(self._found)]


def mixture_layers(config: ModelConfig) -> int:
    """How many layers have experts."""
    return sum(isinstance(layer.mlp, ExpertsConfig) for layer in config.layers)


@torch.no_grad()
def shift_biases(model: nn.Module, loads: Tensor, keep: Tensor) -> None:
    """Balances without a loss (arXiv 2408.15664): the bias of each expert that got less than its share goes up a step,
    of one that got more, down.

    Args:
        loads: [layers with experts, experts], of the whole step on all ranks.
        keep: scalar 1, or 0 to leave them.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router, row in zip(routers, loads, strict=True):
        if router.bias is None:
            continue
        step = BIAS_RATE * keep * (row.mean() - row).sign()
        local = local_part(router.bias)
        start = first_row(router.bias) if local.shape != router.bias.shape else 0  # type: ignore[arg-type]
        local += step[start : start + local.shape[0]]


def routing_facts(loads: Tensor) -> dict[str, float]:
    """What a log says of a step's loads [layers, experts]: "load", the busiest expert's share of an even one, the mean
    over layers; "entropy" of the loads, 1 where they are even; "dead" experts, that got nothing."""
    shares = loads / loads.sum(1, keepdim=True).clamp_min(1)
    count = loads.shape[1]
    entropy = torch.special.entr(shares).sum(1) / torch.tensor(float(count)).log()
    return {
        "load": float((shares.max(1)[0] * count).mean()),
        "entropy": float(entropy.mean()),
        "dead": int((loads == 0).sum()),
    }
