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
    """Rows [B, T] without a cache: parity, gradients, pretraining.

    On a CPU every document is attended to on its own, which costs the square of its length instead of the row's;
    elsewhere one mask of the whole batch serves all layers.

    Args:
        tokens: [B, T], for their shape and device.
        documents: integers [B, T]; tokens see only their own document. None: one document a row. Padding is a document
            of its own.
        adapters: low-rank changes of this pass, or None.
        positions: integers [B, T]; None counts from the beginning of each document.
        prefix: bool [B, T]; these slots are seen by all of their document, the others only by what comes after them.
            They stand at the head of a document. None: causal throughout.
    """

    def __init__(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        adapters: Adapters | None = None,
        positions: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> None:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        if prefix is not None and tokens.device.type == "cpu" and not prefix.any():
            prefix = None
        self._mask: Tensor | None = None
        self._parts: _Parts | None = None
        if positions is None:
            positions = (
                places if documents is None else places - torch.where(_starts(documents), places, 0).cummax(1)[0]
            )
        if documents is not None or prefix is not None:
            if documents is None:
                documents = torch.zeros_like(tokens)
            starts = _starts(documents)
            if tokens.device.type != "cpu":
                self._mask = _mask(documents, prefix)
            elif prefix is not None or starts[:, 1:].any():  # else plain rows
                self._parts = _Parts.of(starts, prefix)
        super().__init__(positions, adapters)

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._parts is not None:
            found: Tensor = self._parts.attend(q, k, v)
            return found
        out: Tensor = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=self._mask,
            is_causal=self._mask is None,
            enable_gqa=config.heads != config.kv_heads,
        )
        return out.transpose(1, 2)


def _starts(documents: Tensor) -> Tensor:
    """bool [B, T]: where a document of `documents` [B, T] begins."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts


def _mask(documents: Tensor, prefix: Tensor | None) -> Tensor:
    """bool [B, 1, T, T]: which keys each query sees."""
    length = documents.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    if prefix is not None:
        visible = visible | prefix[:, None, :]
    return ((documents[:, :, None] == documents[:, None, :]) & visible)[:, None]


class _Parts:
    """Attention document by document, over rows laid end to end.

    Args:
        lengths: tokens of each document; they add up to B * T.
        masks: for each: None where it is causal, else bool [L, L] of which keys each query sees, or [] for all.
    """

    def __init__(self, lengths: list[int], masks: list[Tensor | None]) -> None:
        self._lengths, self._masks = lengths, masks

    @classmethod
    def of(cls, starts: Tensor, prefix: Tensor | None) -> _Parts:
        """From where documents start, bool [B, T], and which slots all of their document sees."""
        begins = starts.flatten().nonzero()[:, 0]
        ends = torch.cat((begins[1:], begins.new_tensor([starts.numel()])))
        lengths = (ends - begins).tolist()
        if prefix is None:
            return cls(lengths, [None] * len(lengths))
        heads = torch.zeros(starts.numel() + 1, dtype=torch.int64)
        torch.cumsum(prefix.flatten(), 0, out=heads[1:])
        return cls(lengths, list(map(_part_mask, lengths, (heads[ends] - heads[begins]).tolist())))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, heads, d] over k, v [B, T, kv_heads, d]; shaped like q."""
        parts = []
        flat = (x.flatten(0, 1).split(self._lengths) for x in (q, k, v))
        for mask, q_, k_, v_ in zip(self._masks, *flat, strict=True):
            out = F.scaled_dot_product_attention(
                q_.transpose(0, 1)[None],
                k_.transpose(0, 1)[None],
                v_.transpose(0, 1)[None],
                attn_mask=mask if mask is not None and mask.numel() else None,
                is_causal=mask is None,
                enable_gqa=q.shape[2] != k.shape[2],
            )
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts).view(q.shape)


def _part_mask(length: int, prefix: int) -> Tensor | None:
    """The mask of a document whose first `prefix` tokens all of it sees, as `_Parts` takes it."""
    if prefix <= 1:
        return None  # the first token is seen by all in any case
    if prefix == length:
        return torch.empty(0, dtype=torch.bool)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:, :prefix] = True
    return visible
