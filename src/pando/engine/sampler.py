"""From logits to one token, for one sequence at a time.

A draw depends on the request's seed, the sample's number and the position alone, so the same request gives the same
answer whatever else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pando.interface import GenerateRequest, TokenLogprob


@dataclass
class Sampler:
    """Sampling state of one sample.

    Attributes:
        request: temperatures, filters and penalties.
        seed, index: with the position they fix each draw.
        counts: how often each token was generated.
        seen: tokens of the prompt (for the repetition penalty, which counts them too).
    """

    request: GenerateRequest
    seed: int
    index: int
    seen: frozenset[int]
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token of the raw logits is the answer (no penalty, no temperature)."""
        r = self.request
        return r.temperature == 0 and r.repetition_penalty == 1 and not r.presence_penalty and not r.frequency_penalty

    def choose(self, logits: Tensor, position: int, allowed: Tensor | None) -> int:
        """The next token from float32 logits [vocab]; `allowed` is a bool [vocab] mask of the grammar's tokens."""
        logits = self._penalise(logits)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        if self.request.temperature == 0:
            return int(logits.argmax())
        return self._draw(logits, position)

    def _penalise(self, logits: Tensor) -> Tensor:
        r = self.request
        if r.repetition_penalty != 1 and (self.seen or self.counts):
            logits = logits.clone()
            ids = torch.tensor(sorted(self.seen.union(self.counts)), device=logits.device)
            chosen = logits[ids]
            logits[ids] = torch.where(chosen > 0, chosen / r.repetition_penalty, chosen * r.repetition_penalty)
        if self.counts and (r.presence_penalty or r.frequency_penalty):
            logits = logits.clone()
            ids = torch.tensor(list(self.counts), device=logits.device)
            times = torch.tensor(list(self.counts.values()), device=logits.device, dtype=logits.dtype)
            logits[ids] -= r.presence_penalty + r.frequency_penalty * times
        return logits

    def _draw(self, logits: Tensor, position: int) -> int:
        r = self.request
        scaled = logits.double() / r.temperature
        probabilities, ids = torch.softmax(scaled, dim=-1).sort(descending=True, stable=True)
        keep = torch.ones_like(probabilities, dtype=torch.bool)
        if r.top_k:
            keep[r.top_k :] = False
        if r.min_p:
            keep &= probabilities >= r.min_p * probabilities[0]
        if r.top_p < 1:
            kept = probabilities * keep
            before = kept.cumsum(-1) - kept
            keep &= before < r.top_p * kept.sum()
        keep[0] = True
        weights = probabilities * keep
        total = weights.cumsum(-1)
        uniform = np.random.Generator(np.random.Philox(key=self.seed, counter=[position, self.index, 0, 0])).random()
        chosen = int(torch.searchsorted(total, torch.tensor(uniform * float(total[-1]), dtype=total.dtype), right=True))
        last = int(keep.nonzero()[-1])
        return int(ids[min(chosen, last)])


def token_logprob(logits: Tensor, log_total: float, token: int, alternatives: int) -> TokenLogprob:
    """Log-probability of `token` and of the likeliest `alternatives`, from raw logits [vocab] and their logsumexp."""
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        values, ids = logits.topk(min(alternatives, logits.shape[-1]))
        top = tuple((int(i), float(v) - log_total) for v, i in zip(values, ids, strict=True))
    return TokenLogprob(token=token, logprob=float(logits[token]) - log_total, top=top)
