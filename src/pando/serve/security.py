"""Who may call, and how much may be sent, checked before a body is read whole or parsed.

Without a key the server answers on loopback only, and there only to requests addressed to it by a loopback name: a
web page that points its own name at 127.0.0.1 (DNS rebinding) is refused. No CORS headers are ever sent, and a body
must be declared as JSON, which a page of another origin cannot do unasked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pando.errors import PandoError
from pando.serve.errors import ApiError

MAX_BODY = 8 << 20  # bytes of one call
MAX_BODIES = 64 << 20  # bytes of all calls under way
BODY_SECONDS = 30.0  # for a body to arrive
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_OPEN_PATHS = {"/health", "/ready"}


def check_address(host: str, keys: Sequence[str]) -> None:
    """Refuses to be reachable from other machines without a key.

    Raises:
        PandoError: `host` is not loopback and there is no key.
    """
    if host not in _LOOPBACK and not keys:
        raise PandoError(
            f"serving on {host} needs a key, as others can reach it: set PANDO_API_KEY, or leave --host out"
        )
    if any(not key or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise PandoError("an API key must be printable ASCII without spaces")


def key_name(key: str) -> str:
    """What the ledger calls a key: enough to tell keys apart, too little to use one."""
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


class Gate:
    """ASGI middleware: host, key, content type, size and time of the body, and whether the server takes calls.

    Args:
        keys: accepted keys; none means that no key is asked for.
        refusal: says why calls cannot be taken now (loading, draining), or None.
        overloaded: makes the answer to a call that is one too many, of the reason.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str] = (),
        host: str = "127.0.0.1",
        refusal: Callable[[], ApiError | None] = lambda: None,
        overloaded: Callable[[str], ApiError],
    ) -> None:
        self._app = app
        self._keys = [(key.encode(), key_name(key)) for key in keys]
        self._hosts = _LOOPBACK | {host}
        self._refusal, self._overloaded = refusal, overloaded
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            size = self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        held = size if size is not None else MAX_BODY if scope["method"] == "POST" else 0
        self._bytes += held

        def arrived(size: int) -> None:
            nonlocal held
            self._bytes += size - held
            held = size

        body = _Body(receive, size, arrived)
        try:
            await self._app(scope, body, send)
        finally:
            self._bytes -= held

    def _check(self, scope: Scope) -> int | None:
        """The body's declared size; raises ApiError."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if not self._keys and _hostname(headers.get("host", "")) not in self._hosts:
            raise ApiError(403, "the Host header names another host than this one; address the server as localhost")
        if self._keys and path not in _OPEN_PATHS:
            scope["pando.key"] = self._who(headers.get("authorization", ""))
        if path.startswith(("/v1/", "/v2/")) and (refusal := self._refusal()):
            raise refusal
        if scope["method"] != "POST":
            return 0
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "send the body as Content-Type: application/json", code="unsupported_media_type")
        size = int(headers["content-length"]) if headers.get("content-length", "").isdecimal() else None
        if size is not None and size > MAX_BODY:
            raise _too_large(size)
        if self._bytes + (size or 0) > MAX_BODIES:
            raise self._overloaded("too much text is under way")
        return size

    def _who(self, header: str) -> str:
        given = header.removeprefix("Bearer ").encode("latin-1") if header.startswith("Bearer ") else b""
        # every key is compared, so that time tells nothing
        names = [name for key, name in self._keys if hmac.compare_digest(key, given)]
        if not names:
            raise ApiError(
                401,
                "a valid key is needed: send the header Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return names[0]


class _Body:
    """`receive` that stops a body which is too large or too slow, and tells its size once it is there."""

    def __init__(self, receive: Receive, size: int | None, arrived: Callable[[int], None]) -> None:
        self._receive, self._arrived, self._size = receive, arrived, 0
        self._left = MAX_BODY if size is None else size
        self._complete = size == 0
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} s", code="timeout") from None
        part = len(message.get("body", b""))
        self._size, self._left = self._size + part, self._left - part
        if self._left < 0:
            raise _too_large(None)
        self._complete = not message.get("more_body", False)
        if self._complete:
            self._arrived(self._size)
        return message


def _too_large(size: int | None) -> ApiError:
    found = f"{size} bytes" if size else "the body"
    return ApiError(413, f"{found} is more than the {MAX_BODY} bytes that one call may send", code="body_too_large")


def _hostname(header: str) -> str:
    """Host header without its port: "[::1]:8000" is "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def scope_key(scope: Any) -> str | None:
    """The name of the key that a call came with."""
    found: str | None = scope.get("pando.key")
    return found
