"""What the engine works on: jobs of one generated sample (`generation`), or of one text that is read (`readings`).

A job tells the scheduler which tokens it needs next (`next_row`) and takes what the model made of them (`take` for
logits, `observe` for hidden states). It owns its blocks of the cache; the scheduler gives and returns them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pando.engine.batch import Row
from pando.engine.cache import Lease, digests, source_digests
from pando.errors import RequestError
from pando.interface import Completion, Features, Latency, Scores
from pando.model.lora import LoraAdapter


@dataclass
class Logits:
    """Output of the head for some rows of tokens: float32 logits [M, vocab], their argmax [M] and logsumexp [M]."""

    logits: Tensor
    best: Tensor
    total: Tensor


class Source:
    """What an encoder reads before a decoder begins; equal ones are read once.

    Attributes:
        tokens: the input.
        digests: one for each block of it.
        lease: its places in the cache, once its job has been admitted.
        read: whether what the decoder needs of it is there.
    """

    def __init__(self, tokens: list[int], digests: list[bytes]) -> None:
        self.tokens, self.digests = tokens, digests
        self.lease: Lease | None = None
        self.read = False

    @classmethod
    def of(cls, tokens: list[int], root: bytes) -> Source:
        """An input; `root` names the weights."""
        return cls(tokens, source_digests(root, tokens))

    def again(self) -> Source:
        """The same input for another job."""
        return Source(self.tokens, self.digests)

    def places(self) -> list[int]:
        """Where keys and values of its tokens go, once there is room for them."""
        assert self.lease is not None
        self.lease.extend(len(self.tokens))
        return self.lease.slots(None, range(len(self.tokens)))

    def publish(self) -> None:
        """Lets later requests find what is now there of it."""
        assert self.lease is not None
        self.lease.publish(self.digests)


class Job(ABC):
    """A sequence of known tokens on its way through the model.

    Attributes:
        tokens: tokens known so far. given: how many of them it began with.
        computed: how many of them are in the cache.
        cached: how many of those were taken over from earlier jobs.
        reusable: how many leading tokens may be taken over at most.
        adapter: applied to every token of the job, or None.
        digests: one for each full block of the tokens at admission.
        whole: all tokens are computed at once, each sees all of them, and nothing is kept (encoders).
        source: what an encoder reads for it, or None.
        kinds: of each token (pairs of texts), or None: all are of the first.
        error: why nothing comes of it, if so.
        lease: the job's places in the cache, once it has been admitted; those that are `whole` need none.
    """

    def __init__(
        self,
        tokens: list[int],
        reusable: int,
        adapter: LoraAdapter | None,
        root: bytes,
        *,
        whole: bool = False,
        source: Source | None = None,
    ) -> None:
        self.tokens, self.given = tokens, len(tokens)
        self.reusable = 0 if whole else reusable
        self.adapter = adapter
        self.root = root if source is None else source.digests[0]
        self.whole, self.source = whole, source
        self.kinds: list[int] | None = None
        self.digests = self.chain()
        self.lease: Lease | None = None
        self.computed = 0
        self.cached = 0
        self.truncated = 0
        self.aborted = False
        self.error: RequestError | None = None
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
    def reserve(self) -> int:
        """For how many tokens there must be places before it begins, or begins again."""
        return self.room

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to compute."""

    def release(self) -> None:
        """Gives its places back."""
        for lease in (self.lease, None if self.source is None else self.source.lease):
            if lease is not None:
                lease.release()

    @property
    def shown(self) -> list[int]:
        """The tokens that it was given to begin with, as callers count them."""
        return self.tokens[: self.given] if self.source is None else self.source.tokens

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

    def gathered(self, answers: list[Any]) -> Any:
        """The answer to a request of several such jobs, from the answers of each."""
        return answers[0]

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
