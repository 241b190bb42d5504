"""What a block may ask while it runs: positions, who attends to whom, adapters. One object is threaded through the
stack; training, scoring and serving differ only in the context they build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pando.model import rope
from pando.model.config import AttentionConfig, RopeConfig


class Adapters(Protocol):
    """Low-rank changes to logical projections, addressed by module path such as `layers.3.attention.q`."""

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """What to add to the projection's output for x [..., in], or None where nothing is to be added."""
        ...


class Context:
    """Base of all contexts.

    Attributes:
        positions: integers, shaped like the token ids.
        adapters: low-rank changes of this pass, or None.
        observe: called with (layer, hidden states) after the embedding (layer 0) and each block, or None.
    """

    def __init__(
        self,
        positions: Tensor,
        adapters: Adapters | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.positions = positions
        self.adapters = adapters
        self.observe = observe
        self._tables: dict[RopeConfig, tuple[Tensor, Tensor]] = {}

    def rotate(self, config: RopeConfig, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Applies rotary positions to q [..., heads, head_dim] and k [..., kv_heads, head_dim]."""
        if config not in self._tables:
            self._tables[config] = rope.tables(config, self.positions, q.dtype)
        cos, sin = self._tables[config]
        return rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [..., heads, head_dim] over what this context lets each token see; shaped like q."""
        raise NotImplementedError


class RowContext(Context):
    """Plain causal rows [B, T] without a cache: parity, gradients, pretraining.

    Attributes:
        documents: integers [B, T]; tokens see only earlier tokens of their own document. None: one document a row.
            Padding is a document of its own.
    """

    def __init__(self, tokens: Tensor, documents: Tensor | None = None, adapters: Adapters | None = None) -> None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        self._mask: Tensor | None = None
        if documents is not None:
            starts = torch.ones_like(documents, dtype=torch.bool)
            starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
            positions = positions - torch.where(starts, positions, 0).cummax(dim=1).values
            causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()
            self._mask = ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]
        super().__init__(positions, adapters)

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=self._mask,
            is_causal=self._mask is None,
            enable_gqa=config.heads != config.kv_heads,
        )
        return out.transpose(1, 2)
