"""What the engine works on: one generated sample, one scoring, or one pooling of hidden states.

A job tells the scheduler which tokens it needs next (`next_row`) and takes what the model made of them (`take` for
logits, `observe` for hidden states). It owns its blocks of the cache; the scheduler gives and returns them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pando.engine.batch import Row
from pando.engine.branches import Branches
from pando.engine.cache import Lease, digests
from pando.engine.grammar import Grammar
from pando.engine.sampler import Sampler, token_logprob
from pando.interface import (
    Chunk,
    Completion,
    Features,
    FinishReason,
    GenerateRequest,
    Latency,
    Scores,
    TokenLogprob,
    Usage,
)
from pando.model.lora import LoraAdapter
from pando.model.tokenizer import Detokenizer, Tokenizer


@dataclass
class Logits:
    """Output of the head for some rows of tokens: float32 logits [M, vocab], their argmax [M] and logsumexp [M]."""

    logits: Tensor
    best: Tensor
    total: Tensor


class Job(ABC):
    """A sequence of known tokens on its way through the model.

    Attributes:
        tokens: tokens known so far.
        computed: how many of them are in the cache.
        cached: how many of those were taken over from earlier jobs.
        reusable: how many leading tokens may be taken over at most.
        adapter: applied to every token of the job, or None.
        digests: one for each full block of the tokens at admission.
        whole: all tokens are computed at once, each sees all of them, and nobody takes them over (encoders).
        lease: the job's places in the cache, once it has been admitted.
    """

    def __init__(
        self, tokens: list[int], reusable: int, adapter: LoraAdapter | None, root: bytes, whole: bool = False
    ) -> None:
        self.tokens = tokens
        self.reusable = 0 if whole else reusable
        self.adapter = adapter
        self.root = root
        self.whole = whole
        self.digests = self.chain()
        self.lease: Lease | None = None
        self.computed = 0
        self.cached = 0
        self.truncated = 0
        self.aborted = False
        self.compute = 0.0
        self.submitted = time.perf_counter()
        self.started = 0.0
        self.first = 0.0
        self.answer: Completion | Scores | Features | None = None

    def chain(self) -> list[bytes]:
        """The digests of the full blocks that are known now."""
        return [] if self.whole else digests(self.root, self.tokens)

    @property
    @abstractmethod
    def room(self) -> int:
        """Most tokens that this job will ever hold in the cache."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to compute."""

    def next_row(self, budget: int) -> Row:
        """The next tokens to compute, at most about `budget`."""
        end = len(self.tokens) if self.whole else min(len(self.tokens), self.computed + max(budget, 1))
        span = range(self.computed, end)
        return Row(self, self.tokens[self.computed : end], list(span), past=self.computed)

    def take(self, row: Row, at: int, found: Logits) -> None:
        """Logits of `row.want[at : at + M]`; jobs that want none never get any, and have no such method."""
        raise NotImplementedError

    @abstractmethod
    def result(self) -> Completion | Scores | Features:
        """The answer of a finished job."""

    def advance(self, row: Row) -> None:
        """Called once the row is in the cache, before its logits."""
        self.computed = min(row.past + len(row.tokens), len(self.tokens))

    def latency(self) -> Latency:
        """Times of a finished job."""
        now = time.perf_counter()
        started, first = self.started or now, self.first or now
        return Latency(
            queue=started - self.submitted,
            first_token=first - self.submitted,
            total=now - self.submitted,
            compute=self.compute,
        )


class Generation(Job):
    """One sample of a generate request."""

    def __init__(
        self,
        request: GenerateRequest,
        prompt: list[int],
        sampler: Sampler,
        grammar: Grammar | None,
        tokenizer: Tokenizer,
        adapter: LoraAdapter | None,
        root: bytes,
    ) -> None:
        echo = request.prompt_logprobs is not None
        super().__init__(list(prompt), 0 if echo else len(prompt) - 1, adapter, root)
        self.request = request
        self.sampler = sampler
        self.grammar = grammar
        self.prompt = len(prompt)
        self.stops = [request.stop] if isinstance(request.stop, str) else [s for s in request.stop if s]
        ends = set(request.stop_token_ids)
        self.ends = ends if request.ignore_eos else ends | tokenizer.eos_ids
        self.eos = tokenizer.eos_ids
        self.detokenizer = Detokenizer(tokenizer)
        self.text = ""
        self.sent = 0
        self.reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] if echo else None
        self.chunks: list[Chunk] = []
        self.limit = request.max_tokens  # lowered where the context ends first

    @property
    def room(self) -> int:
        return self.prompt + self.limit

    @property
    def finished(self) -> bool:
        return self.reason is not None

    @property
    def decoding(self) -> bool:
        """Whether the next row is a single new token."""
        return self.computed >= self.prompt

    def next_row(self, budget: int) -> Row:
        row = super().next_row(budget)
        if self.prompt_logprobs is not None and not self.decoding:
            row.want = list(range(len(row.tokens)))
        elif row.past + len(row.tokens) == len(self.tokens):
            row.want = [len(row.tokens) - 1]
        return row

    def take(self, row: Row, at: int, found: Logits) -> None:
        for i, offset in enumerate(row.want[at : at + len(found.best)]):
            place = row.past + offset
            if place + 1 < self.prompt:
                assert self.prompt_logprobs is not None
                token, alternatives = self.tokens[place + 1], self.request.prompt_logprobs or 0
                self.prompt_logprobs.append(token_logprob(found.logits[i], float(found.total[i]), token, alternatives))
            elif self.limit == 0:
                self.reason = "length"
            else:
                self._sample(found, i)

    def _sample(self, found: Logits, i: int) -> None:
        if self.grammar is None and self.sampler.plain:
            token = int(found.best[i])
        else:
            allowed = None if self.grammar is None else self.grammar.allowed().to(found.logits.device)
            token = self.sampler.choose(found.logits[i], len(self.tokens) - self.prompt, allowed)
        if self.logprobs is not None:
            alternatives = self.request.logprobs or 0
            self.logprobs.append(token_logprob(found.logits[i], float(found.total[i]), token, alternatives))
        self._append(token)

    def _append(self, token: int) -> None:
        self.first = self.first or time.perf_counter()
        self.tokens.append(token)
        self.sampler.counts[token] += 1
        generated = len(self.tokens) - self.prompt
        if token in self.ends:
            self.text += self.detokenizer.finish()
            self.reason = "stop"
        else:
            self.text += self.detokenizer.add([token])
            if self.grammar is not None:
                self.grammar.advance(token)
                if self.grammar.finished:
                    self.reason = "stop"
            if self.reason is None and generated >= self.limit:
                self.reason = "length"
            if self.reason is not None:
                self.text += self.detokenizer.finish()
        self._cut_at_stop()
        self._emit(token)

    def _cut_at_stop(self) -> None:
        places = [at for stop in self.stops if (at := self.text.find(stop, max(0, self.sent - len(stop)))) >= 0]
        if places:
            self.text = self.text[: min(places)]
            self.reason = "stop"

    def _emit(self, token: int) -> None:
        """Queues the text that no stop string can take back any more."""
        end = len(self.text)
        if self.reason is None:
            end -= max((_overlap(self.text, stop) for stop in self.stops), default=0)
        logprobs = None if self.logprobs is None else self.logprobs[-1:]
        self.chunks.append(Chunk(self.sampler.index, self.text[self.sent : max(end, self.sent)], [token], logprobs))
        self.sent = max(end, self.sent)

    def result(self) -> Completion:
        """The finished sample."""
        return Completion(
            text=self.text,
            tokens=self.tokens[self.prompt :],
            finish_reason=self.reason or "abort",
            usage=Usage(self.prompt, self.cached, len(self.tokens) - self.prompt, self.truncated),
            latency=self.latency(),
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            prompt_tokens=self.tokens[: self.prompt],
            index=self.sampler.index,
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Scoring(Job):
    """Continuations of one context; the context is computed once and may be shared with other jobs."""

    LIMIT = 1024  # most tree tokens in one row

    def __init__(
        self, context: list[int], continuations: list[list[int]], adapter: LoraAdapter | None, root: bytes
    ) -> None:
        super().__init__(context, len(context) - 1, adapter, root)
        self.continuations = continuations
        self.trees = [Branches.build(part) for part in self._parts()]
        self.sums = [0.0] * len(continuations)
        self.greedy = [True] * len(continuations)
        self.done = 0

    def _parts(self) -> list[list[tuple[int, list[int]]]]:
        parts: list[list[tuple[int, list[int]]]] = []
        size = self.LIMIT
        for number, tokens in sorted(enumerate(self.continuations), key=lambda pair: pair[1]):
            if size + len(tokens) > self.LIMIT:
                parts.append([])
                size = 0
            parts[-1].append((number, tokens))
            size += len(tokens)
        return parts

    @property
    def room(self) -> int:
        return len(self.tokens) + max(len(tree.tokens) for tree in self.trees)

    @property
    def finished(self) -> bool:
        return self.done == len(self.trees)

    def next_row(self, budget: int) -> Row:
        # The context's last token is computed with each tree: the first token of every branch needs its logits.
        self.computed = min(self.computed, len(self.tokens) - 1)
        row = super().next_row(budget)
        if row.past + len(row.tokens) == len(self.tokens):
            tree, last = self.trees[self.done], len(row.tokens) - 1
            row.want = list(range(last, last + 1 + len(tree.tokens)))
            if tree.tokens:
                row.tokens = row.tokens + tree.tokens
                row.positions = row.positions + [len(self.tokens) + depth for depth in tree.depths]
                row.tree = tree.visible()
        return row

    def take(self, row: Row, at: int, found: Logits) -> None:
        tree = self.trees[self.done]
        size = len(found.best)
        edges = [
            (parent + 1 - at, token, number) for parent, token, number in tree.edges if 0 <= parent + 1 - at < size
        ]
        places = torch.tensor([edge[0] for edge in edges], device=found.best.device)
        tokens = torch.tensor([edge[1] for edge in edges], device=found.best.device)
        values = (found.logits[places, tokens] - found.total[places]).tolist()
        likeliest = (found.best[places] == tokens).tolist()
        for (_, _, number), value, is_best in zip(edges, values, likeliest, strict=True):
            self.sums[number] += value
            self.greedy[number] &= is_best
        if at + size == len(row.want):
            self.done += 1
            self.first = self.first or time.perf_counter()

    def result(self) -> Scores:
        """The finished scores."""
        counts = [len(tokens) for tokens in self.continuations]
        usage = Usage(len(self.tokens), self.cached, sum(counts), self.truncated)
        return Scores(self.sums, self.greedy, counts, usage, self.latency())


class Pooling(Job):
    """Hidden states of one text, pooled. Only tokens outside the pooled part can come from the cache."""

    def __init__(
        self,
        tokens: list[int],
        layers: Sequence[int],
        pooled: range,
        with_last: bool,
        adapter: LoraAdapter | None,
        root: bytes,
        whole: bool,
    ) -> None:
        super().__init__(tokens, pooled.start, adapter, root, whole)
        self.layers = list(layers)
        self.pooled = pooled
        self.with_last = with_last  # the last token's states come after the pooled ones
        self.sums: dict[int, Tensor] = {}
        self.last: dict[int, Tensor] = {}

    @property
    def room(self) -> int:
        return len(self.tokens)

    @property
    def finished(self) -> bool:
        return self.computed == len(self.tokens)

    def observe(self, layer: int, row: Row, hidden: Tensor) -> None:
        """Adds hidden states [T, d_model] of the row at a layer."""
        pooled = hidden[max(0, self.pooled.start - row.past) : max(0, self.pooled.stop - row.past)]
        if len(pooled):
            total = pooled.float().sum(0)
            self.sums[layer] = self.sums[layer] + total if layer in self.sums else total
            self.last[layer] = hidden[-1].float()

    def result(self) -> Features:
        """The finished vectors."""
        states = [self.sums[layer] / len(self.pooled) for layer in self.layers]
        if self.with_last:
            states = [torch.cat((mean, self.last[layer])) for mean, layer in zip(states, self.layers, strict=True)]
        usage = Usage(len(self.tokens), self.cached, 0, self.truncated)
        return Features(torch.stack(states).cpu().numpy(), usage, self.latency())
