"""One server process: it listens at once, loads, says when it is ready, drains when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from pando.errors import PandoError
from pando.serve.app import create_app
from pando.serve.registry import Registry
from pando.serve.service import Service

DRAIN_SECONDS = 60.0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are ours


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        PandoError: the port is in use, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PandoError(
                f"port {port} of {host} is in use: end what listens there, or choose another --port"
            ) from None
        raise PandoError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; check --host and --port"
        ) from None
    found.setblocking(False)
    return found


def run(
    service: Service,
    opened: Callable[[], Registry],
    listening: socket.socket,
    *,
    host: str,
    keys: Sequence[str],
    ready: Callable[[Registry], None],
) -> int:
    """Serves until told to stop and returns the exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Args:
        opened: loads the model and its skins; runs in a thread while calls are told to wait (503).
        ready: called once calls are taken.
    """
    return asyncio.run(_run(service, opened, listening, host, keys, ready))


async def _run(
    service: Service,
    opened: Callable[[], Registry],
    listening: socket.socket,
    host: str,
    keys: Sequence[str],
    ready: Callable[[Registry], None],
) -> int:
    stop: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    _on_signals(stop)
    config = uvicorn.Config(
        create_app(service, keys=keys, host=host),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        http="h11",
        ws="none",
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    loading = asyncio.create_task(asyncio.to_thread(opened))
    try:
        await _first(loading, stop, serving)
        if loading.done():
            registry = loading.result()
            service.open(registry)
            ready(registry)
            await _first(stop, serving)
        if stop.done():
            print(
                "pando serve: finishing the calls under way; a second signal ends at once", file=sys.stderr, flush=True
            )
            await service.drain(DRAIN_SECONDS)
    finally:
        server.should_exit = True
        await serving
        service.close()
    if loading.done():
        loading.result().model.close()
    else:
        os._exit(130 if stop.result() == signal.SIGINT else 0)  # a thread that loads cannot be ended
    return 130 if stop.done() and stop.result() == signal.SIGINT else 0


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _on_signals(stop: asyncio.Future[signal.Signals]) -> None:
    def told(number: signal.Signals) -> None:
        if stop.done():
            os._exit(130 if number == signal.SIGINT else 143)  # the ledger's lines are on disk already
        stop.set_result(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)
