"""What reads and writes nothing: scores of continuations, and hidden states pooled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pando.engine.batch import Row
from pando.engine.branches import Branches
from pando.engine.jobs import Job, Logits, Source
from pando.interface import Features, Scores, Usage
from pando.model.lora import LoraAdapter


class Scoring(Job):
    """Continuations of one context; the context is computed once and may be shared with other jobs."""

    LIMIT = 1024  # most tree tokens in one row

    def __init__(
        self,
        context: list[int],
        continuations: list[list[int]],
        adapter: LoraAdapter | None,
        root: bytes,
        source: Source | None = None,
    ) -> None:
        super().__init__(context, len(context) - 1, adapter, root, source=source)
        self.continuations = continuations
        self.order = [list(range(len(continuations)))]
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

    def gathered(self, answers: list[Scores]) -> Scores:
        """See `in_order`."""
        return in_order(self.order, answers)

    def result(self) -> Scores:
        """The finished scores."""
        counts = [len(tokens) for tokens in self.continuations]
        usage = Usage(len(self.shown), self.cached, sum(counts), self.truncated)
        return Scores(self.sums, self.greedy, counts, usage, self.latency())


class Following(Job):
    """A continuation that is too long for a tree: it is read as a text is, a part after the other."""

    def __init__(
        self,
        context: list[int],
        continuation: list[int],
        adapter: LoraAdapter | None,
        root: bytes,
        source: Source | None = None,
    ) -> None:
        super().__init__([*context, *continuation[:-1]], len(context) - 1, adapter, root, source=source)
        self.given = len(context)
        self.continuation = continuation
        self.order = [[0]]
        self.sum, self.greedy = 0.0, True

    @property
    def room(self) -> int:
        return len(self.tokens)

    @property
    def finished(self) -> bool:
        return self.computed == len(self.tokens)

    def next_row(self, budget: int) -> Row:
        row = super().next_row(budget)
        row.want = list(range(max(0, self.given - 1 - row.past), len(row.tokens)))
        return row

    def take(self, row: Row, at: int, found: Logits) -> None:
        start = row.past + row.want[at] - (self.given - 1)
        tokens = torch.tensor(self.continuation[start : start + len(found.best)], device=found.best.device)
        places = torch.arange(len(tokens), device=tokens.device)
        self.sum += float((found.logits[places, tokens] - found.total).sum())
        self.greedy &= bool((found.best == tokens).all())
        self.first = self.first or time.perf_counter()

    def gathered(self, answers: list[Scores]) -> Scores:
        """See `in_order`."""
        return in_order(self.order, answers)

    def result(self) -> Scores:
        """The finished score."""
        usage = Usage(len(self.shown), self.cached, len(self.continuation), self.truncated)
        return Scores([self.sum], [self.greedy], [len(self.continuation)], usage, self.latency())


def in_order(order: Sequence[Sequence[int]], answers: Sequence[Scores]) -> Scores:
    """Scores of the continuations of one request, from those of its jobs.

    Args:
        order: for each job, which continuations of the request it scored.
    """
    found = sorted(
        (number, one)
        for numbers, answer in zip(order, answers, strict=True)
        for number, one in zip(numbers, zip(answer.logprobs, answer.greedy, answer.tokens, strict=True), strict=True)
    )
    first = answers[0].usage  # the context is one
    usage = replace(first, completion_tokens=sum(answer.usage.completion_tokens for answer in answers))
    latency = max((answer.latency for answer in answers), key=lambda latency: latency.total)
    logprobs, greedy, tokens = (list(values) for values in zip(*(one for _, one in found), strict=True))
    return Scores(logprobs, greedy, tokens, usage, latency)


class Filling(Job):
    """What may stand in the place of an encoder's mask: for each number of tokens, one text with so many masks."""

    def __init__(
        self, tokens: list[int], place: int, fillings: list[list[int]], adapter: LoraAdapter | None, root: bytes
    ) -> None:
        super().__init__(tokens, 0, adapter, root, whole=True)
        self.place, self.fillings = place, fillings
        self.sizes = sorted({len(one) for one in fillings})
        self.sums = [0.0] * len(fillings)
        self.greedy = [False] * len(fillings)

    @property
    def room(self) -> int:
        return len(self.tokens) - 1 + max(self.sizes)

    @property
    def finished(self) -> bool:
        return not self.sizes

    def next_row(self, budget: int) -> Row:
        before, mask, after = self.tokens[: self.place], self.tokens[self.place], self.tokens[self.place + 1 :]
        tokens = [*before, *[mask] * self.sizes[0], *after]
        return Row(self, tokens, list(range(len(tokens))), 0, list(range(self.place, self.place + self.sizes[0])))

    def take(self, row: Row, at: int, found: Logits) -> None:
        size = self.sizes[0]
        for number, tokens in enumerate(self.fillings):
            if len(tokens) == size:
                part = torch.tensor(tokens[at : at + len(found.best)], device=found.best.device)
                places = torch.arange(len(part), device=part.device)
                self.sums[number] += float((found.logits[places, part] - found.total).sum())
                self.greedy[number] = bool((found.best == part).all()) and (at == 0 or self.greedy[number])
        if at + len(found.best) == size:
            self.sizes.pop(0)
            self.first = self.first or time.perf_counter()

    def advance(self, row: Row) -> None:
        """Nothing is kept."""

    def result(self) -> Scores:
        """The finished scores."""
        counts = [len(tokens) for tokens in self.fillings]
        return Scores(
            self.sums, self.greedy, counts, Usage(len(self.tokens), 0, sum(counts), self.truncated), self.latency()
        )


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
        super().__init__(tokens, pooled.start, adapter, root, whole=whole)
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


class Pairing(Pooling):
    """Two texts read as one, of which a head says how well the second answers the first."""

    def __init__(
        self,
        tokens: list[int],
        kinds: list[int],
        written: int,
        judge: Callable[[Tensor], Tensor],
        depth: int,
        adapter: LoraAdapter | None,
        root: bytes,
    ) -> None:
        super().__init__(tokens, [depth], range(1), False, adapter, root, whole=True)
        self.kinds, self.judge, self.written = kinds, judge, written

    def gathered(self, answers: list[Scores]) -> Scores:
        """The pairs of a request, in their order."""
        return Scores(
            [one.logprobs[0] for one in answers],
            [one.greedy[0] for one in answers],
            [one.tokens[0] for one in answers],
            sum((one.usage for one in answers), Usage()),
            max((one.latency for one in answers), key=lambda latency: latency.total),
        )

    def result(self) -> Scores:  # type: ignore[override]
        """The finished score: the logarithm of a probability."""
        (state,) = self.sums.values()
        logit = self.judge(state[None])[0].float()
        usage = Usage(len(self.tokens), 0, 0, self.truncated)
        said = float(torch.nn.functional.logsigmoid(logit))
        return Scores([said], [bool(logit > 0)], [self.written], usage, self.latency())
