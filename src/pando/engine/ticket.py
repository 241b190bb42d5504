"""The caller's end of a submitted request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pando.engine.jobs import Job
from pando.interface import Chunk, Request


class Ticket:
    """A submitted request (see `interface.Handle`)."""

    def __init__(self, request: Request, jobs: Sequence[Job], wake: Callable[[], None]) -> None:
        self.request = request
        self.jobs = jobs
        self._wake = wake
        self._done = threading.Event()
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._answer: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Ticket], None]] = []
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the answer: a list of Completions, Scores or Features.

        Raises:
            TimeoutError: it took longer than `timeout` seconds; the request goes on.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._answer

    def stream(self) -> Iterator[Chunk]:
        """Chunks of a generation in the order they come; the last of each sample carries its completion."""
        while (chunk := self._chunks.get()) is not None:
            yield chunk
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """Ends the request at the next step; samples under way finish with reason "abort"."""
        for job in self.jobs:
            job.aborted = True
        self._wake()

    def done(self) -> bool:
        """Whether the answer or an error is there."""
        return self._done.is_set()

    def add_done_callback(self, callback: Callable[[Ticket], None]) -> None:
        """Calls `callback(self)` once done, on the engine's thread (at once if it is done already)."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def push(self, chunk: Chunk) -> None:
        """Hands a chunk to whoever streams. Called on the engine's thread, as `finish` is."""
        self._chunks.put(chunk)

    def finish(self, answer: Any, error: BaseException | None = None) -> None:
        """Settles the request with its answer or error; only the first time counts."""
        with self._lock:
            if self._done.is_set():
                return
            self._answer, self._error = answer, error
            self._done.set()
        self._chunks.put(None)
        for callback in self._callbacks:
            callback(self)
