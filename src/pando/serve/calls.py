"""One call under way: from the event loop to the engine's thread and back, and its line in the ledger.

The event loop never waits: tokenising, grammars and skins run in worker threads, answers come back by callback.
Whatever ends a call (an answer, an error, a client that left, the server's end) goes through `close`, which frees
the engine and writes the line; the last byte of an answer is sent only after its line is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from pando.errors import RequestError
from pando.interface import Answer, Chunk, Completion, Handle, Request
from pando.ledger import Line, new_id
from pando.serve.accounts import Spent
from pando.serve.errors import ApiError

if TYPE_CHECKING:
    from pando.serve.registry import Served
    from pando.serve.service import Service

WINDOW = 64  # requests of one call that are with the engine at once
_ABORT_SECONDS = 10.0  # for the engine to let go of what was aborted


class Call:
    """One call: `resolve` what answers it, `ask` or `stream` the model, `close` it.

    Attributes:
        id: unique; the answer's id and the ledger line's.
        route: "/v1/...".
        key: the name of the key it came with.
        created: seconds since 1970.
    """

    def __init__(self, service: Service, route: str, prefix: str, key: str | None) -> None:
        self.service = service
        self.route = route
        self.key = key
        self.id = f"{prefix}-{new_id()}"
        self.created = int(time.time())
        self._served: Served | None = None
        self._local_seconds = 0.0  # computed here instead of in the engine (floors, probes, parsing)
        self._started = self._answered = time.perf_counter()
        self._handles: list[Handle] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def served(self) -> Served:
        """What answers the call; only once resolved."""
        assert self._served is not None
        return self._served

    @property
    def name(self) -> str:
        """The name of what answers it, empty as long as it is not known."""
        return self._served.name if self._served else ""

    async def resolve(self, name: str) -> None:
        """Finds what is served under a name now; raises ApiError 404."""
        self._served = await self.service.in_thread(self.service.registry.resolve, name)

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the order of the requests. One that fails ends the others; its error tells its place."""
        window = asyncio.Semaphore(WINDOW)

        async def one(place: int, request: Request) -> Answer:
            async with window:
                try:
                    answer = await _result(await self._submit(request))
                except RequestError as error:
                    error.place = place
                    raise
            self._answered = time.perf_counter()
            return answer

        tasks = [asyncio.ensure_future(one(place, request)) for place, request in enumerate(requests)]
        try:
            answers = list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
        await self._same_skin()
        return answers

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Chunk]]:
        """Submits generations, then returns an iterator over (place of the request, chunk) as they come."""
        handles = [await self._submit(request) for request in requests]
        return self._chunks(handles)

    async def _chunks(self, handles: Sequence[Handle]) -> AsyncIterator[tuple[int, Chunk]]:
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[tuple[int, Chunk | BaseException | None]] = asyncio.Queue()

        def read(place: int, handle: Handle) -> None:
            end: BaseException | None = None
            with contextlib.suppress(RuntimeError):  # the loop has ended, nobody reads any more
                try:
                    for chunk in handle.stream():
                        loop.call_soon_threadsafe(ready.put_nowait, (place, chunk))
                except Exception as error:
                    end = error
                loop.call_soon_threadsafe(ready.put_nowait, (place, end))

        for place, handle in enumerate(handles):
            self.service.readers.submit(read, place, handle)
        left = len(handles)
        while left:
            place, item = await ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
                self._answered = time.perf_counter()
                continue
            if item.completion:
                _check_complete([item.completion])
            yield place, item
        await self._same_skin()

    async def _same_skin(self) -> None:
        """Raises ApiError 409 where the adapter was replaced on the way: some answers may be of the new one."""
        if self.served.adapter is None:
            return
        now = await self.service.in_thread(self.service.registry.resolve, self.name)
        if now.version != self.served.version:
            raise ApiError(409, f"{self.name} was replaced during the call; ask again", code="skin_replaced")

    async def locally(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Runs work of our own in a worker thread; its seconds count as the call's."""
        return await self.service.in_thread(self._timed, work, *arguments)

    def spent(self) -> Spent:
        """What the answers so far used."""
        answers = []
        for handle in self._handles:
            if handle.done():
                with contextlib.suppress(Exception):  # it failed, and its caller was told
                    answers.append(handle.result(0))
        return Spent.of(answers, self._answered - self._started, self._local_seconds)

    async def close(self, status: str) -> None:
        """Frees the engine, writes the ledger line, gives up the place among the calls under way; `status` is how
        the call ended. Only the first close counts.

        Raises:
            PandoError: the ledger cannot be written.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            await self._release()
            if status != "success":
                self._answered = time.perf_counter()
            spent = self.spent()
            self.service.metrics.ended(self, status, spent)
            if self._handles or self._local_seconds:
                await self.service.writer.write(self._line(status, spent))
        finally:
            self.service.end(self)

    async def _release(self) -> None:
        running = [handle for handle in self._handles if not handle.done()]
        for handle in running:
            handle.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ABORT_SECONDS):
                for handle in running:
                    with contextlib.suppress(Exception):
                        await _result(handle)

    def _line(self, status: str, spent: Spent) -> Line:
        served = self.served
        return Line(
            kind="call",
            id=self.id,
            skin=served.skin.name if served.skin else None,
            skin_version=served.version if served.skin else None,
            base=served.model.identity if self._handles else None,
            key=self.key,
            usage=spent.usage,
            seconds=spent.seconds,
            usd=self.service.settings.usd(spent.seconds.compute),
            detail={"route": self.route, "status": status},
        )

    async def _submit(self, request: Request) -> Handle:
        return await self.service.in_thread(self._submit_now, request)

    def _submit_now(self, request: Request) -> Handle:
        handle = self.served.model.submit(request)
        with self._lock:
            self._handles.append(handle)
            late = self._closed
        if late:  # the call ended while this thread was preparing
            handle.abort()
        return handle

    def _timed(self, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time()  # what waits for the engine's thread costs nothing
        try:
            return work(*arguments)
        finally:
            self._local_seconds += time.thread_time() - started
            self._answered = time.perf_counter()


async def _result(handle: Handle) -> Answer:
    """Awaits a handle; aborted samples are an error."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def settle() -> None:
        if future.cancelled():
            return
        try:
            future.set_result(handle.result(0))
        except BaseException as error:
            future.set_exception(error)

    def done(_: Handle) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle)

    handle.add_done_callback(done)
    answer = await future
    if isinstance(answer, list):
        _check_complete(answer)
    return answer


def _check_complete(completions: Sequence[Completion]) -> None:
    if any(completion.finish_reason == "abort" for completion in completions):
        raise ApiError(503, "the answer was cut off because the server stops", code="server_stopping")
