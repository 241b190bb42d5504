"""What a block may ask while it runs: positions, who attends to whom, adapters. One object is threaded through the
stack; training, scoring and serving differ only in the context they build.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pando.model import blocked, relative, rope
from pando.model.attention import attention, seen
from pando.model.config import AttentionConfig, RelativeConfig, RopeConfig

Remember = Callable[[Tensor, "Context"], tuple[Tensor, Tensor]]


class Adapters(Protocol):
    """Low-rank changes to logical projections, addressed by module path such as `layers.3.attention.q`."""

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """What to add to the projection's output for x [..., in], or None where nothing is to be added."""
        ...

    def grouped(self, site: str, x: Tensor, counts: Tensor, tokens: Tensor) -> Tensor | None:
        """The same for a stack of projections, one for each expert.

        Args:
            x: [M, in], sorted by expert. counts: [experts], rows of each. tokens: [M], which token of the pass each is.
        """
        ...


class Context(ABC):
    """Base of all contexts.

    Attributes:
        positions: integers, shaped like the token ids.
        adapters: low-rank changes of this pass, or None.
        observe: called with (layer, hidden states) after the embedding (layer 0) and each block, or None.
        routed: called with (layer, scores [N, experts], experts of each token [N, k]) where tokens went, or None.
        absorbs: whether latent vectors are its keys and values (pando.model.layers.LatentAttention).
        source: of a decoder with an encoder: the input's tokens and their context; None where what is known of the
            input is kept already.
        memory: what the encoder made of them, set before the decoder runs.
        kinds: of each token, integers shaped like the positions (pairs of texts); None: all are of the first kind.
    """

    absorbs = False
    source: tuple[Tensor, Context] | None = None
    memory: Tensor | None = None
    kinds: Tensor | None = None
    routed: Callable[[int, Tensor, Tensor], None] | None = None

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
        return rope.rotate(q, cos, sin, config.interleaved), rope.rotate(k, cos, sin, config.interleaved)

    @abstractmethod
    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [..., heads, d] over k [..., kv_heads, d] and v [..., kv_heads, e] of what each token sees.

        Returns:
            [..., heads, e].
        """

    def relate(self, config: RelativeConfig, table: Tensor) -> None:
        """Takes the numbers [buckets, heads] that distances add to the scores of all layers, before the first runs."""
        raise NotImplementedError(f"{type(self).__name__} has no relative positions")

    def consult(self, layer: int, config: AttentionConfig, q: Tensor, remember: Remember) -> Tensor:
        """Attention of q [..., heads, d] over all of the encoder's input that belongs to each token: [..., heads, d].

        Args:
            remember: makes keys and values of the encoder's hidden states, where they are not kept.
        """
        raise NotImplementedError(f"{type(self).__name__} has no encoder")


class PackedContext(Context):
    """Documents laid end to end, [N], each of which sees only itself. Nothing is kept.

    Args:
        lengths: tokens of each document; they add up to N.
        both_ways: a token sees all of its document; else what is up to it.
        adapters, observe: see `Context`.
        source: the tokens [S] that the encoder reads, and their context, with as many documents as here: each document
            looks at the one of the same place.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | None = None,
        *,
        both_ways: bool = False,
        adapters: Adapters | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
        source: tuple[Tensor, PackedContext] | None = None,
    ) -> None:
        self._places = torch.arange(max(lengths), device=device)
        super().__init__(torch.cat([self._places[:length] for length in lengths]), adapters, observe)
        self.lengths, self.source, self._both_ways = list(lengths), source, both_ways
        self._parts = _Parts(self.lengths, self.lengths if both_ways else [0] * len(lengths))
        self._bias: Tensor | None = None

    @cached_property
    def _spans(self) -> blocked.Spans:
        lengths = torch.tensor(self.lengths)
        first, shared = lengths.cumsum(0) - lengths, lengths if self._both_ways else torch.zeros_like(lengths)
        return blocked.Spans(first.repeat_interleave(lengths)[None], shared.repeat_interleave(lengths)[None])

    def relate(self, config: RelativeConfig, table: Tensor) -> None:
        """See `Context.relate`."""
        bias = relative.bias(table, config, self._places, self._places, both_ways=self._both_ways)
        hidden = None if self._both_ways else ~seen(self._places, self._places)
        self._bias = bias if hidden is None else bias.masked_fill(hidden, -torch.inf)

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = q[None], k[None], v[None]
        if self._bias is None and blocked.pays(config, *row):
            made: Tensor = blocked.attention(config, *row, self._spans)
            return made[0]
        found: Tensor = self._parts.attend(config, q, k, v, self._bias)
        return found

    def consult(self, layer: int, config: AttentionConfig, q: Tensor, remember: Remember) -> Tensor:
        """See `Context.consult`."""
        assert self.source is not None and self.memory is not None
        _, behind = self.source
        assert isinstance(behind, PackedContext)
        found: Tensor = _across(config, q, *remember(self.memory, behind), self.lengths, behind.lengths)
        return found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _across(
    config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], sources: Sequence[int]
) -> Tensor:
    """Each document of q [N, heads, d] over the whole of its own of k and v [S, kv_heads, d]."""
    each = zip(q.split(list(lengths)), k.split(list(sources)), v.split(list(sources)), strict=True)
    parts = [attention(config, *(x.transpose(0, 1)[None] for x in one))[0].transpose(0, 1) for one in each]
    return torch.cat(parts)


class RowContext(Context):
    """Rows [B, T] without a cache: parity, gradients, pretraining.

    On a CPU every document is attended to on its own, which costs the square of its length instead of the row's, or
    rows are gone through by blocks (`blocked`); elsewhere one mask of the whole batch serves all layers.

    Args:
        tokens: [B, T], for their shape and device.
        documents: integers [B, T]; tokens see only their own document. None: one document a row. Padding is a document
            of its own.
        adapters: low-rank changes of this pass, or None.
        positions: integers [B, T]; None counts from the beginning of each document.
        prefix: bool [B, T]; these slots are seen by all of their document, the others only by what comes after them.
            They stand at the head of a document. None: causal throughout.
        both_ways: every token sees the ones after it too, as encoders do.
    """

    def __init__(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        adapters: Adapters | None = None,
        positions: Tensor | None = None,
        prefix: Tensor | None = None,
        both_ways: bool = False,
    ) -> None:
        if both_ways:
            prefix = torch.ones_like(tokens, dtype=torch.bool)
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        if prefix is not None and tokens.device.type == "cpu" and not prefix.any():
            prefix = None
        self._masks: dict[int | None, Tensor | None] = {}
        self._parts: _Parts | None = None
        self._documents: Tensor | None = None
        self._prefix = prefix
        self._first = (
            torch.zeros_like(places) if documents is None else torch.where(_starts(documents), places, 0).cummax(1)[0]
        )
        if documents is not None or prefix is not None:
            if documents is None:
                documents = torch.zeros_like(tokens)
            starts = _starts(documents)
            if tokens.device.type != "cpu":
                self._documents = documents
            elif prefix is not None or starts[:, 1:].any():  # else plain rows
                self._parts = _Parts.of(starts, prefix)
        super().__init__(places - self._first if positions is None else positions, adapters)

    @cached_property
    def _spans(self) -> blocked.Spans:
        shared = torch.zeros_like(self._first)
        if self._prefix is not None:
            shared = shared.scatter_add_(1, self._first, self._prefix.long()).gather(1, self._first)
        return blocked.Spans(self._first, shared)

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if blocked.pays(config, q, k, v):
            made: Tensor = blocked.attention(config, q, k, v, self._spans)
            return made
        if self._parts is not None:
            found: Tensor = self._parts.attend(config, *(x.flatten(0, 1) for x in (q, k, v)))
            return found.view(*q.shape[:-1], v.shape[-1])
        mask = self._mask(config.window)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attention(config, q, k, v, mask, causal=mask is None).transpose(1, 2)

    def _mask(self, window: int | None) -> Tensor | None:
        """bool, broadcast to [B, heads, T, T]: which keys each query sees; None: all up to its own."""
        length = self.positions.shape[1]
        window = None if window is None or window >= length else window
        if window not in self._masks:
            if self._documents is None:
                places = torch.arange(length, device=self.positions.device)
                self._masks[window] = None if window is None else seen(places, places, window)
            else:
                self._masks[window] = _document_mask(self._documents, self._prefix, window)
        return self._masks[window]


def _starts(documents: Tensor) -> Tensor:
    """bool [B, T]: where a document of `documents` [B, T] begins."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts


def _document_mask(documents: Tensor, prefix: Tensor | None, window: int | None) -> Tensor:
    """bool [B, 1, T, T]: which keys each query sees."""
    places = torch.arange(documents.shape[1], device=documents.device)
    visible = seen(places, places, window)
    if prefix is not None:
        visible = visible | (prefix[:, None, :] & seen(places, places, window, both_ways=True))
    return ((documents[:, :, None] == documents[:, None, :]) & visible)[:, None]


class _Parts:
    """Attention document by document, over documents laid end to end; those of one length together.

    Args:
        lengths: tokens of each document.
        prefixes: how many tokens at its head all of a document sees.
    """

    def __init__(self, lengths: list[int], prefixes: list[int]) -> None:
        self._lengths = lengths
        self._alike: dict[tuple[int, int], list[int]] = {}  # documents that are attended to in one call
        for i, kind in enumerate(zip(lengths, prefixes, strict=True)):
            self._alike.setdefault(kind, []).append(i)
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    @classmethod
    def of(cls, starts: Tensor, prefix: Tensor | None) -> _Parts:
        """From where documents start, bool [B, T], and which slots all of their document sees."""
        begins = starts.flatten().nonzero()[:, 0]
        ends = torch.cat((begins[1:], begins.new_tensor([starts.numel()])))
        lengths = (ends - begins).tolist()
        if prefix is None:
            return cls(lengths, [0] * len(lengths))
        heads = torch.zeros(starts.numel() + 1, dtype=torch.int64)
        torch.cumsum(prefix.flatten(), 0, out=heads[1:])
        return cls(lengths, (heads[ends] - heads[begins]).tolist())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q [N, heads, d] over k [N, kv_heads, d], v [N, kv_heads, e]: [N, heads, e].

        Args:
            bias: [heads, L, L] for the longest document: added to the scores, and -inf where a key is not seen.
        """
        flat = [x.transpose(0, 1).split(self._lengths, 1) for x in (q, k, v)]  # [heads, length, d] each
        parts: dict[int, Tensor] = {}
        for (length, prefix), alike in self._alike.items():
            if bias is None:
                mask, causal = self._view(length, prefix, config.window)
            else:
                mask, causal = bias[None, :, :length, :length].to(q.dtype), False
            q, k, v = (torch.stack([x[i] for i in alike]) for x in flat)
            out = attention(config, q, k, v, mask, causal=causal).transpose(1, 2)
            parts.update(zip(alike, out.unbind(), strict=True))
        return torch.cat([parts[i] for i in range(len(self._lengths))])

    def _view(self, length: int, prefix: int, window: int | None) -> tuple[Tensor | None, bool]:
        """Which keys a document's queries see, as `attention` takes it: a mask, and whether it is plainly causal."""
        window = None if window is None or window >= length else window
        if window is None and prefix <= 1:
            return None, True  # the first token is seen by all in any case
        if window is None and prefix == length:
            return None, False
        key = (length, prefix, window)
        if key not in self._masks:
            places = torch.arange(length)
            both = seen(places, places, window, both_ways=True)
            self._masks[key] = seen(places, places, window) | (both & (places < prefix))
        return self._masks[key], False
