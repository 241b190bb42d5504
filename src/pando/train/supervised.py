"""The supervised objective: learn to answer a prompt. Only the answer's tokens carry loss, its end token included.

Prompts of one task begin alike (system turn, instruction). What a batch's prompts share is computed once and seen by
every row, with its gradient; the result is that of computing it in every row, for a fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pando.model.attention import attention, seen
from pando.model.config import AttentionConfig, ModelConfig
from pando.model.context import Adapters, Context, PackedContext
from pando.model.transformer import Transformer


@dataclass(frozen=True)
class SupervisedExample:
    """Token ids of a prompt and of the answer to learn. The mask is these lengths, never a token's id."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Batch(Protocol):
    """Examples of one step.

    Attributes:
        places: flat indices whose hidden states predict a supervised token, [S].
        targets: those tokens, [S].
        logical_tokens: tokens of all examples as if nothing were shared.
    """

    @property
    def places(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def logical_tokens(self) -> int: ...

    def inputs(self, adapters: Adapters | None) -> tuple[Tensor, Context]:
        """What the model is given: packed tokens and their context."""
        ...


@dataclass(frozen=True)
class SharedPrefixBatch:
    """For a decoder, packed flat as shared prefix [P], then rows [R x T], padded at their ends; see `Batch`.

    Attributes:
        tokens: [P + R * T].
        prefix, rows, width: P, R and T.
    """

    tokens: Tensor
    prefix: int
    rows: int
    width: int
    places: Tensor
    targets: Tensor
    logical_tokens: int

    def inputs(self, adapters: Adapters | None) -> tuple[Tensor, Context]:
        """See `Batch`."""
        return self.tokens, SharedPrefixContext(self, adapters)


@dataclass(frozen=True)
class PairBatch:
    """For an encoder-decoder: prompts laid end to end for the one, answers for the other; see `Batch`.

    Attributes:
        prompts, tokens: what is read, and what is written, each token one place late.
        read, written: tokens of each example in these.
    """

    prompts: Tensor
    tokens: Tensor
    read: tuple[int, ...]
    written: tuple[int, ...]
    targets: Tensor

    @property
    def places(self) -> Tensor:
        """See `Batch`: all that is written."""
        return torch.arange(len(self.tokens), device=self.tokens.device)

    @property
    def logical_tokens(self) -> int:
        """See `Batch`."""
        return len(self.prompts) + len(self.tokens)

    def inputs(self, adapters: Adapters | None) -> tuple[Tensor, Context]:
        """See `Batch`."""
        device = self.tokens.device
        behind = PackedContext(self.read, device, both_ways=True, adapters=adapters)
        return self.tokens, PackedContext(self.written, device, adapters=adapters, source=(self.prompts, behind))


def collate(examples: Sequence[SupervisedExample], config: ModelConfig, device: torch.device | None = None) -> Batch:
    """Packs examples for a model; the last token of an answer is only a target and takes no forward pass."""
    if config.encoder is None:
        return _shared_prefix(examples, device)
    return PairBatch(
        prompts=torch.tensor([t for example in examples for t in example.prompt], device=device),
        tokens=torch.tensor([t for one in examples for t in (config.start_token, *one.answer[:-1])], device=device),
        read=tuple(len(example.prompt) for example in examples),
        written=tuple(len(example.answer) for example in examples),
        targets=torch.tensor([t for example in examples for t in example.answer], device=device),
    )


def _shared_prefix(examples: Sequence[SupervisedExample], device: torch.device | None) -> SharedPrefixBatch:
    shared = _common_prefix([example.prompt for example in examples])
    rows = [[*example.prompt[shared:], *example.answer[:-1]] for example in examples]
    width = max(map(len, rows))
    places: list[int] = []
    for r, (example, row) in enumerate(zip(examples, rows, strict=True)):
        end = shared + r * width + len(row)
        places.extend(range(end - len(example.answer), end))
    tokens = [*examples[0].prompt[:shared]]
    for row in rows:
        tokens.extend(row)
        tokens.extend([0] * (width - len(row)))  # never seen: rows are causal and padding comes last
    return SharedPrefixBatch(
        tokens=torch.tensor(tokens, device=device),
        prefix=shared,
        rows=len(rows),
        width=width,
        places=torch.tensor(places, device=device),
        targets=torch.tensor([t for example in examples for t in example.answer], device=device),
        logical_tokens=sum(map(len, examples)),
    )


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of what all prompts begin with; the last token of each stays in its row, where it predicts."""
    if len(prompts) == 1:
        return 0
    first, last = min(prompts), max(prompts)  # the prefix of the extremes is the prefix of all
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class SharedPrefixContext(Context):
    """Rows [R, T] that each continue the same prefix [P], packed flat [P + R * T]."""

    def __init__(self, batch: SharedPrefixBatch, adapters: Adapters | None = None) -> None:
        device = batch.tokens.device
        inside = torch.arange(batch.width, device=device) + batch.prefix
        super().__init__(torch.cat((torch.arange(batch.prefix, device=device), inside.repeat(batch.rows))), adapters)
        self._prefix, self._rows = batch.prefix, batch.rows
        self._inside, self._keys = inside, torch.arange(batch.prefix + batch.width, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [P + R * T, heads, head_dim]: the prefix over itself, each row over the prefix and itself.

        Attention is computed in float32 whatever comes in: for rows this short torch's bfloat16 kernel for CPUs is
        several times slower, its backward pass most of all.
        """
        p = self._prefix
        q32, k32, v32 = q.float(), k.float(), v.float()
        q_head, k_head, v_head = (x[:p].transpose(0, 1)[None] for x in (q32, k32, v32))
        q_rows, k_rows, v_rows = (x[p:].unflatten(0, (self._rows, -1)).transpose(1, 2) for x in (q32, k32, v32))
        rows = _grouped_attention(
            config,
            q_rows,
            torch.cat((k_head.expand(self._rows, -1, -1, -1), k_rows), dim=2),
            torch.cat((v_head.expand(self._rows, -1, -1, -1), v_rows), dim=2),
            self._mask(config.window),
        )
        rows = rows.transpose(1, 2).flatten(0, 1).to(q.dtype)
        if p == 0:
            return rows
        places = self._keys[:p]
        mask = None if config.window is None or config.window >= p else seen(places, places, config.window)
        head = attention(config, q_head, k_head, v_head, mask, causal=mask is None)
        return torch.cat((head[0].transpose(0, 1).to(q.dtype), rows))

    def _mask(self, window: int | None) -> Tensor:
        """What is added to scores of the rows over the prefix and themselves, [T, P + T]."""
        if window not in self._masks:
            visible = seen(self._inside, self._keys, window)
            hidden = torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -torch.inf)
            self._masks[window] = hidden
        return self._masks[window]


def _grouped_attention(config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [R, heads, T, d] over k, v [R, kv_heads, L, d] with an additive mask [T, L]. The queries that share a key head
    are laid end to end, so that keys and values are never repeated.
    """
    group = q.shape[1] // k.shape[1]
    stacked = q.unflatten(1, (k.shape[1], group)).flatten(2, 3)
    out: Tensor = attention(config, stacked, k, v, mask.repeat(group, 1)).unflatten(2, (group, -1))
    return out.flatten(1, 2)


def supervised_loss(model: Transformer, batch: Batch, adapters: Adapters | None = None) -> tuple[Tensor, int]:
    """Summed cross-entropy of the supervised tokens in nats (float32 scalar) and how many they are.

    The output head runs at supervised positions only.
    """
    hidden = model(*batch.inputs(adapters))[batch.places]
    return F.cross_entropy(model.head(hidden).float(), batch.targets, reduction="sum"), len(batch.targets)
