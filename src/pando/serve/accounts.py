"""What a call used, and how that gets into the ledger without holding up the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pando.interface import Answer, Completion, Latency, Usage
from pando.ledger import Ledger, Line, Seconds


@dataclass(frozen=True)
class Spent:
    """What a call used: tokens, where its time went, and whether an answer was cut at its limit ("length"); of each
    sample of several tokens the mean seconds between them."""

    usage: Usage
    seconds: Seconds
    finish_reason: str
    gaps: tuple[float, ...] = ()

    @classmethod
    def of(cls, answers: Sequence[Answer], total: float, local: float) -> Spent:
        """Sums over answers that ran side by side within `total` seconds, `local` of them computed by the server.

        A prompt that several samples share counts once. The call waited until its first answer was started, read
        prompts until the first token, and decoded from then on; computing adds up.
        """
        usage, reason, latencies, gaps = Usage(), "stop", [], []
        for answer in answers:
            parts: Sequence[Any] = answer if isinstance(answer, list) else [answer]
            generated = sum(part.usage.completion_tokens for part in parts)
            first = parts[0].usage
            usage += Usage(first.prompt_tokens, first.cached_tokens, generated, first.truncated_tokens)
            latencies += [part.latency for part in parts]
            written = [part for part in parts if isinstance(part, Completion) and len(part.tokens) > 1]
            gaps += [(one.latency.total - one.latency.first_token) / (len(one.tokens) - 1) for one in written]
            if any(getattr(part, "finish_reason", "") == "length" for part in parts):
                reason = "length"
        whole = Latency(
            queue=min((latency.queue for latency in latencies), default=0.0),
            first_token=min((latency.first_token for latency in latencies), default=0.0),
            total=total,
            compute=local + sum(latency.compute for latency in latencies),
        )
        return cls(usage, Seconds.of(whole), reason, tuple(gaps))


class LedgerWriter:
    """Writes lines from one thread, all that wait in one transaction; a line awaited is a line on disk."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pando-ledger")
        self._waiting: list[tuple[Line, asyncio.Future[None]]] = []

    async def write(self, line: Line) -> None:
        """Returns when the line is on disk; raises PandoError if it cannot be."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append((line, written))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush, loop)
        await asyncio.shield(written)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._waiting = self._waiting, []
        work = loop.run_in_executor(self._thread, self._ledger.write, [line for line, _ in batch])
        work.add_done_callback(functools.partial(_settle, [written for _, written in batch]))

    def close(self) -> None:
        """Waits for what is being written."""
        self._thread.shutdown()


def _settle(futures: Sequence[asyncio.Future[None]], work: asyncio.Future[None]) -> None:
    error = work.exception()
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
