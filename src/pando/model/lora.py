"""Low-rank adapters (LoRA, arXiv 2106.09685): finished ones, and one in training. `pando.model.peft` has their files.

An adapter addresses logical projections by their site (`layers.3.attention.q`), never packed weights, so that an
engine may fuse or quantise the base as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.layers import ExpertProjection, grouped_product
from pando.model.transformer import Transformer


@dataclass(frozen=True)
class LoraConfig:
    """Rank, scale and sites of an adapter.

    Attributes:
        rank: inner dimension r.
        alpha: the change is scaled by alpha / r, or alpha / sqrt(r) if `rank_stabilised` (rsLoRA, arXiv 2312.03732).
        sites: module paths that are adapted.
    """

    rank: int
    alpha: float
    sites: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """Factor on B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class LoraAdapter:
    """A finished adapter: for each site A [r, in] and B [out, r], or a stack of them for each expert, the scale folded
    into B."""

    def __init__(self, weights: Mapping[str, tuple[Tensor, Tensor]], digest: bytes) -> None:
        self._weights = dict(weights)
        self.digest = digest  # of the files it came from; part of every cache key

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """Change of the site's output [..., out] for its input x [..., in]; None if the site is not adapted."""
        pair = self._weights.get(site)
        return None if pair is None else F.linear(F.linear(x, pair[0]), pair[1])

    def grouped(self, site: str, x: Tensor, counts: Tensor, tokens: Tensor) -> Tensor | None:
        """Change of a stack of experts' projections for x [M, in], sorted by expert; see `Adapters.grouped`."""
        pair = self._weights.get(site)
        return None if pair is None else grouped_product(grouped_product(x, pair[0], counts), pair[1], counts)


class TrainableLora(nn.Module):
    """An adapter in training: A uniform as in PEFT's default (Kaiming, a = sqrt 5), B zero, both float32.

    `delta` computes in the dtype of its input, so that the low-rank products run as fast as the base's.
    """

    def __init__(self, model: Transformer, config: LoraConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self._index = {site: i for i, site in enumerate(config.sites)}
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        projections = model.projections()
        for site in config.sites:
            projection = projections[site]
            bound = 1 / math.sqrt(projection.in_features)
            stack = (projection.experts,) if isinstance(projection, ExpertProjection) else ()
            fresh = torch.empty(*stack, config.rank, projection.in_features)
            fresh.uniform_(-bound, bound, generator=generator)
            device = model.embed.weight.device
            self.a.append(nn.Parameter(fresh.to(device)))
            self.b.append(nn.Parameter(torch.zeros(*stack, projection.out_features, config.rank, device=device)))

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """Change of the site's output [..., out] for its input x [..., in]; None if the site is not adapted."""
        i = self._index.get(site)
        if i is None:
            return None
        inner = F.linear(x, self.a[i].to(x.dtype))
        return F.linear(inner, (self.b[i] * self.config.scale).to(x.dtype))

    def grouped(self, site: str, x: Tensor, counts: Tensor, tokens: Tensor) -> Tensor | None:
        """Change of a stack of experts' projections for x [M, in], sorted by expert; see `Adapters.grouped`."""
        i = self._index.get(site)
        if i is None:
            return None
        inner = grouped_product(x, self.a[i].to(x.dtype), counts)
        return grouped_product(inner, (self.b[i] * self.config.scale).to(x.dtype), counts)

    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B by site, unscaled; stacks of them for experts."""
        return {site: (self.a[i].detach(), self.b[i].detach()) for site, i in self._index.items()}


def all_linear(model: Transformer) -> tuple[str, ...]:
    """Every projection inside the blocks (PEFT's `all-linear`: no embedding, no head)."""
    return tuple(model.projections())
