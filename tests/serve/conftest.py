from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from pando.ledger import Ledger
from pando.serve.app import create_app
from pando.serve.registry import Registry
from pando.serve.run import listen
from pando.serve.service import Service
from pando.settings import Settings
from tests.serve.fake_model import FakeModel


class Running:
    """A server on a thread of its own, on a real port."""

    def __init__(self, model: Any, home: Path, skins: Path | None = None, keys: tuple[str, ...] = (), **more: Any):
        self.model = model
        self.ledger = Ledger(f"sqlite:///{home / 'ledger.sqlite'}")
        self.service = Service(self.ledger, Settings(home=home, machine_usd_per_hour=3600.0), **more)
        self.registry = Registry(model, skins)
        self.service.open(self.registry)
        listening = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = create_app(self.service, keys=keys)
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve(listening)])
        self._thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=30, headers={"Authorization": f"Bearer {(*keys, '-')[0]}"})
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=(*keys, "-")[0], max_retries=0, timeout=30)

    async def _serve(self, listening: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[listening])

    def post(self, route: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/{route}", json={"model": self.model.identity.name, **body})

    def stop(self) -> None:
        self.http.close()
        self.openai.close()
        self._server.should_exit = True
        self._thread.join(20)
        self.service.close()
        self.ledger.close()
        assert not self._thread.is_alive()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def start(model: FakeModel, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers over the fake model, all stopped at the end."""
    running: list[Running] = []

    def begin(**more: Any) -> Running:
        running.append(Running(model, tmp_path, **more))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture
def server(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all that leave nothing behind."""
    running = Running(FakeModel(), tmp_path_factory.mktemp("shared"))
    yield running
    running.stop()
