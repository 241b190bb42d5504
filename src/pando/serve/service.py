"""What all routes share: the model and its skins, the ledger, how many calls are under way, worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from pando.ledger import Ledger
from pando.serve.accounts import LedgerWriter
from pando.serve.calls import Call
from pando.serve.errors import ApiError
from pando.serve.metrics import Metrics
from pando.serve.registry import Registry
from pando.settings import Settings

T = TypeVar("T")
_WORKERS = 4  # prepare requests: tokenise, compile grammars, retrieve demonstrations
_READERS = 512  # each follows one stream, asleep between its tokens


class Service:
    """The state of one server.

    Attributes:
        status: "loading" until there is a registry, then "ready"; "draining" once told to stop.
        max_queue: most calls under way, waiting ones included; more are told to come back.
    """

    def __init__(self, ledger: Ledger, settings: Settings, *, max_queue: int = 256) -> None:
        self.settings = settings
        self.max_queue = max_queue
        self.writer = LedgerWriter(ledger)
        self.metrics = Metrics(self)
        self.status: Literal["loading", "ready", "draining"] = "loading"
        self.readers = ThreadPoolExecutor(_READERS, thread_name_prefix="pando-stream")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="pando-prepare")
        self._registry: Registry | None = None
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def registry(self) -> Registry:
        """What is served; only when ready."""
        assert self._registry is not None
        return self._registry

    @property
    def under_way(self) -> int:
        """Calls under way."""
        return len(self._calls)

    def open(self, registry: Registry) -> None:
        """From now on calls are taken."""
        self._registry = registry
        self.status = "ready"

    def refusal(self) -> ApiError | None:
        """Why no call can be taken now, or None."""
        if self.status == "ready":
            return None
        why = "the model is still loading" if self.status == "loading" else "the server is stopping"
        return ApiError(503, f"{why}; try again shortly", code=self.status, headers={"Retry-After": "2"})

    def begin(self, call: Call) -> None:
        """Counts a call in; raises ApiError 429 if there are too many, 503 if none is taken any more."""
        if refusal := self.refusal():  # it may have come to that while the body was read
            raise refusal
        if self.under_way >= self.max_queue:
            raise self.overloaded(f"{self.under_way} calls are under way already")
        self._calls.add(call)
        self._idle.clear()

    def overloaded(self, why: str) -> ApiError:
        """429, to be tried again in a second; counted."""
        self.metrics.refused()
        return ApiError(429, f"{why}; try again shortly", code="rate_limit_exceeded", headers={"Retry-After": "1"})

    def end(self, call: Call) -> None:
        """Counts a call out."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Runs blocking work in one of the worker threads."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    async def drain(self, seconds: float) -> bool:
        """Takes no more calls and waits for those under way; False if some had to be cut off after `seconds`."""
        self.status = "draining"
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            await asyncio.gather(*(call.close("cut off") for call in list(self._calls)), return_exceptions=True)
            return False
        return True

    def close(self) -> None:
        """Waits for the ledger's last lines and lets the threads go."""
        self.writer.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self.readers.shutdown(wait=False, cancel_futures=True)
