"""Which jobs run: admission, the tokens of each step, and what becomes of finished ones. Only the engine's thread calls
it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import cast

from pando.engine.batch import Row
from pando.engine.cache import BLOCK, KVCache
from pando.engine.generation import Generation
from pando.engine.jobs import Job
from pando.engine.ticket import Ticket
from pando.errors import RequestError
from pando.interface import Chunk, Completion


class Scheduler:
    """Jobs under way and waiting.

    Args:
        cache: of jobs' own tokens. sources: of what an encoder reads for them, where there is one.
        budget: most new tokens of a step, about.
    """

    def __init__(self, cache: KVCache, sources: KVCache | None, budget: int) -> None:
        self.cache, self.sources, self.budget = cache, sources, budget
        self._waiting: deque[tuple[Job, Ticket]] = deque()
        self._running: list[tuple[Job, Ticket]] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    @property
    def counts(self) -> tuple[int, int]:
        """How many run and how many wait."""
        return len(self._running), len(self._waiting)

    def fits(self, job: Job) -> bool:
        """Whether an empty cache has room for it."""
        source = 0 if job.source is None else len(job.source.tokens)
        return all(
            cache.most(window, room) <= pool.size
            for cache, room in ((self.cache, job.room), (self.sources, source))
            if cache is not None
            for window, pool in cache.pools.items()
        )

    def add(self, jobs: Iterable[Job], ticket: Ticket) -> None:
        """Lets jobs wait for their turn."""
        self._waiting.extend((job, ticket) for job in jobs)

    def rows(self) -> list[Row]:
        """Of the next step: the running jobs first, then as many waiting ones as budget and cache hold."""
        self._drop_aborted()
        self._make_room()
        decoding = [job for job, _ in self._running if isinstance(job, Generation) and job.decoding]
        rows = [job.next_row(1) for job in decoding]
        # A long prompt must not hold up answers under way for long.
        budget = self.budget // 4 if decoding else self.budget
        busy = set(map(id, decoding))
        for job, _ in self._running:
            if id(job) not in busy and budget > 0:
                rows.append(job.next_row(budget))
                budget -= len(rows[-1].tokens)
        pending = {digest for job, _ in self._running for digest in job.digests[job.computed // BLOCK :]}
        while self._waiting and budget > 0:
            row = self._admit(budget, pending)
            if row is None:
                break
            rows.append(row)
            budget -= row.work
        return rows

    def settle(self) -> None:
        """Streams new text and finishes jobs that are done."""
        still = []
        for job, ticket in self._running:
            if isinstance(job, Generation):
                for chunk in job.chunks:
                    ticket.push(chunk)
                job.chunks.clear()
            if job.error is not None:
                job.release()
                ticket.finish(None, job.error)
                for other in ticket.jobs:
                    other.aborted = True
            elif job.finished:
                if job.lease is not None:
                    job.lease.publish(job.chain()[: job.computed // BLOCK])
                job.release()
                self._conclude(job, ticket)
            else:
                if job.lease is not None:
                    # a scoring's last token is computed again with each of its trees
                    job.lease.trim(min(job.computed, len(job.tokens) - 1))
                still.append((job, ticket))
        self._running = still

    def fail(self, error: BaseException) -> None:
        """Tells everyone that nothing comes of it."""
        for job, ticket in self._running:
            job.release()
            ticket.finish(None, error)
        for _, ticket in self._waiting:
            ticket.finish(None, error)
        self._running, self._waiting = [], deque()

    def _make_room(self) -> None:
        """Samples that have used up their places get more, the oldest first. Where there are none, the youngest sample
        gives its own back and waits; one that is alone finds enough, or it would not have been let in."""
        for job, _ in list(self._running):
            while job.lease is not None and len(job.tokens) > job.lease.room and not job.lease.grow(job.reserve):
                place = max(i for i, (one, _) in enumerate(self._running) if isinstance(one, Generation))
                youngest, ticket = self._running.pop(place)
                assert isinstance(youngest, Generation)
                youngest.put_back()
                self._waiting.appendleft((youngest, ticket))

    def _admit(self, budget: int, pending: set[bytes]) -> Row | None:
        """Moves the first waiting job that can start to the running ones. A job whose beginning, or whose input, is
        being computed by another one right now (`pending`) waits for it, so that what is shared is computed once.
        """
        for place, (job, ticket) in enumerate(self._waiting):
            chain = job.digests[: job.reusable // BLOCK]
            known = self.cache.known(chain)
            if known < len(chain) and chain[known] in pending:
                continue
            if job.source is not None and job.source.digests[0] in pending:
                continue
            if not job.whole and not self._place(job, chain):
                return None
            job.computed = known * BLOCK
            if not job.started:
                job.cached = len(job.source.tokens) * job.source.read if job.source is not None else job.computed
                job.started = time.perf_counter()
            del self._waiting[place]
            self._running.append((job, ticket))
            pending.update(job.digests[known:])
            if job.source is not None and not job.source.read:
                pending.add(job.source.digests[0])
            return job.next_row(budget)
        return None

    def _place(self, job: Job, chain: list[bytes]) -> bool:
        """Finds room for a job, and for its input where nobody has read that before; False where there is none now."""
        source = job.source
        if source is not None:
            assert self.sources is not None
            source.read = self.sources.known(source.digests) == len(source.digests)
            source.lease = self.sources.admit(source.digests if source.read else [], len(source.tokens))
            if source.lease is None:
                return False
        job.lease = self.cache.admit(chain, job.reserve)
        if job.lease is None and source is not None and source.lease is not None:
            source.lease.release()
            source.lease = None
        return job.lease is not None

    def _conclude(self, job: Job, ticket: Ticket) -> None:
        job.answer = job.result()
        if isinstance(job, Generation):
            ticket.push(Chunk(job.sampler.index, "", completion=cast(Completion, job.answer)))
        if all(other.answer is not None for other in ticket.jobs):
            ticket.finish(job.gathered([other.answer for other in ticket.jobs]))

    def _drop_aborted(self) -> None:
        for job, ticket in [pair for pair in self._running if pair[0].aborted]:
            self._running.remove((job, ticket))
            job.release()
            self._abandon(job, ticket)
        for job, ticket in [pair for pair in self._waiting if pair[0].aborted]:
            self._waiting.remove((job, ticket))
            self._abandon(job, ticket)

    def _abandon(self, job: Job, ticket: Ticket) -> None:
        if isinstance(job, Generation):
            self._conclude(job, ticket)
        else:
            ticket.finish(None, RequestError("the request was aborted"))
