"""How a call is answered: JSON at once, or server-sent events; in either case it ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pando.serve.calls import Call
from pando.serve.errors import as_api_error, to_json
from pando.serve.security import scope_key
from pando.serve.service import Service

SEND_SECONDS = 60.0  # a caller that takes nothing for so long has left

# What a route makes of a call: the answer's JSON, or an iterator over the JSON of its events.
Answering = Callable[[Call], Awaitable[dict[str, Any] | AsyncIterator[dict[str, Any]]]]


def respond(request: Request, name: str, prefix: str, answering: Answering) -> Response:
    """Answers a call to the model served under `name`; its id begins with `prefix`."""
    service: Service = request.app.state.service
    call = Call(service, request.url.path, prefix, scope_key(request.scope))
    return _CallResponse(call, name, answering)


class _Left(Exception):
    """The caller does not read any more."""


class _CallResponse(Response):
    def __init__(self, call: Call, name: str, answering: Answering) -> None:
        super().__init__()
        self._call = call
        self._name = name
        self._answering = answering
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._run(send))
        gone = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    async def _run(self, send: Send) -> None:
        call, status = self._call, "error"
        try:
            call.service.begin(call)
            try:
                await call.resolve(self._name)
                answer = await self._answering(call)
                if isinstance(answer, dict):
                    body = await call.service.in_thread(to_json, answer)
                    await call.close("success")
                    await self._send(send, body, "application/json")
                else:
                    await self._stream(send, answer)
                    await call.close("success")
                    await self._event(send, b"[DONE]", last=True)
            except (asyncio.CancelledError, _Left):
                status = "cancelled"
                raise
            finally:
                # a call that is being cancelled must still free the engine and be accounted for
                await asyncio.shield(call.close(status))
        except _Left:
            pass
        except Exception as error:
            await self._fail(send, error)

    async def _stream(self, send: Send, events: AsyncIterator[dict[str, Any]]) -> None:
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            async for event in events:
                await self._event(send, to_json(event))

    async def _event(self, send: Send, data: bytes, last: bool = False) -> None:
        if not self._started:
            await self._start(send, 200, "text/event-stream; charset=utf-8", {"Cache-Control": "no-cache"})
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": not last})
        except TimeoutError:
            raise _Left from None

    async def _send(self, send: Send, body: bytes, media: str, status: int = 200, **headers: str) -> None:
        await self._start(send, status, media, {"Content-Length": str(len(body)), **headers})
        await send({"type": "http.response.body", "body": body})

    async def _start(self, send: Send, status: int, media: str, headers: dict[str, str]) -> None:
        self._started = True
        every = {"Content-Type": media, "X-Request-Id": self._call.id, **headers}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in every.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})

    async def _fail(self, send: Send, error: Exception) -> None:
        told = as_api_error(error)
        body = to_json(told.body())
        if not self._started:
            await self._send(send, body, "application/json", told.status_code, **dict(told.headers or {}))
            return
        with contextlib.suppress(_Left):
            await self._event(send, body, last=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
