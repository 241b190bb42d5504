"""The server as a process: how it starts, how it stops, and what a kill leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from pando.ledger import open_ledger

SCRIPT = Path(__file__).with_name("fake_process.py")
BODY = {"model": "fake", "prompt": "x", "max_tokens": 20, "ignore_eos": True, "temperature": 0}


class Process:
    def __init__(self, *arguments: str, pace: float = 0.0, loading: float = 0.0, **environment: str) -> None:
        command = [sys.executable, str(SCRIPT), str(pace), str(loading), "serve", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )

    def ready(self) -> str:
        """Waits for the line that it is ready; returns the URL in it."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("serving fake"), (line, self.process.stderr and self.process.stderr.read())
        return line.split()[-1]

    def ends(self, seconds: float = 20.0) -> tuple[int, str]:
        """Waits for the end; exit code and standard error."""
        _, error = self.process.communicate(timeout=seconds)
        return self.process.returncode, error


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def begin(*arguments: str, **more: object) -> Process:
        processes.append(Process(*arguments, **more))  # type: ignore[arg-type]
        return processes[-1]

    yield begin
    for process in processes:
        process.process.kill()
        process.process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_says_where_it_is_and_ends_when_told(serve: Callable[..., Process]) -> None:
    server = serve("--port", "0")
    url = server.ready()
    assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "fake"
    server.process.send_signal(signal.SIGTERM)
    code, error = server.ends()
    assert code == 0 and "Traceback" not in error


def test_ctrl_c_ends_with_130(serve: Callable[..., Process]) -> None:
    server = serve("--port", "0")
    server.ready()
    server.process.send_signal(signal.SIGINT)
    code, error = server.ends()
    assert code == 130 and "Traceback" not in error


def test_calls_are_told_to_wait_while_it_loads(serve: Callable[..., Process]) -> None:
    port = free_port()
    server = serve("--port", str(port), loading=1.5)
    for _ in range(200):
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=BODY)
            break
        except httpx.ConnectError:
            time.sleep(0.05)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
    assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 503
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    server.ready()
    assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_can_be_ended_while_it_loads(serve: Callable[..., Process], number: signal.Signals, code: int) -> None:
    port = free_port()
    server = serve("--port", str(port), loading=30.0)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    time.sleep(0.3)
    server.process.send_signal(number)
    assert server.ends()[0] == code


def test_it_finishes_what_is_under_way_and_takes_no_more(serve: Callable[..., Process]) -> None:
    server = serve("--port", "0", pace=0.05)
    url = server.ready()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/completions", json=BODY, timeout=20)))
    asking.start()
    time.sleep(0.4)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    late = httpx.post(f"{url}/completions", json=BODY)
    assert late.status_code == 503 and late.json()["error"]["code"] == "draining"
    asking.join()
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 20
    assert server.ends()[0] == 0
    with open_ledger() as ledger:
        assert [line["detail"]["status"] for line in ledger.lines()] == ["success"]


def test_a_second_signal_ends_it_at_once(serve: Callable[..., Process]) -> None:
    server = serve("--port", "0", pace=0.5)
    url = server.ready()

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{url}/completions", json=BODY, timeout=30)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert server.ends(3.0)[0] == 143
    asking.join()


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--host", "0.0.0.0"], {}, "needs a key"),
        (["--host", "203.0.113.7"], {"PANDO_API_KEY": "k"}, "cannot listen"),
        (["--port", "70000"], {}, "--port"),
        (["--skins", "/no/such/folder"], {}, "no folder /no/such/folder"),
        (["broken"], {}, "pull it again"),
        (["--max-queue", "0"], {}, "--max-queue"),
        ([], {"PANDO_LEDGER": "nonsense"}, "URL"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_are_one_line(
    serve: Callable[..., Process], arguments: list[str], environment: dict[str, str], said: str
) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    code, error = serve(*arguments, *port, **environment).ends()
    lines = [line for line in error.splitlines() if not line.startswith("pando serve: loading")]
    assert code == 2 and len(lines) == 1 and said in lines[0]


def test_a_port_in_use_is_one_line(serve: Callable[..., Process]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        code, error = serve("--port", str(holder.getsockname()[1])).ends()
    assert code == 2 and error.count("\n") == 1 and "is in use" in error


def test_a_key_opens_other_addresses(serve: Callable[..., Process]) -> None:
    server = serve("--host", "0.0.0.0", "--port", "0", PANDO_API_KEY="one,two")
    url = server.ready().replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{url}/models").status_code == 401
    assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer two"}).status_code == 200


@pytest.mark.parametrize("round_", range(2))
def test_a_kill_under_load_loses_at_most_the_calls_in_flight(serve: Callable[..., Process], round_: int) -> None:
    """Every answer that a caller got whole, streamed or not, has its line; the ledger opens and adds up."""
    server = serve("--port", "0", pace=0.002)
    url = server.ready()
    got: list[str] = []
    lock = threading.Lock()

    def ask(stream: bool) -> None:
        with httpx.Client(timeout=20) as client:
            while True:
                try:
                    answer = client.post(f"{url}/completions", json=BODY | {"stream": stream})
                except httpx.HTTPError:
                    return
                if not stream:
                    found = answer.json()["id"]
                elif answer.text.rstrip().endswith("[DONE]"):
                    found = json.loads(answer.text.split("\n", 1)[0].removeprefix("data: "))["id"]
                else:
                    continue
                with lock:
                    got.append(found)

    callers = [threading.Thread(target=ask, args=[i % 2 == 0]) for i in range(6)]
    for caller in callers:
        caller.start()
    while len(got) < 10:
        time.sleep(0.01)
    time.sleep(random.Random(round_).uniform(0, 0.5))
    server.process.kill()
    for caller in callers:
        caller.join()
    with open_ledger() as ledger:
        lines = ledger.lines()
        assert got and set(got) <= {line["id"] for line in lines}
        assert len(lines) <= len(got) + len(callers)
        assert {line["completion_tokens"] for line in lines} == {20}
        assert ledger.summary("kind")[0]["completion_tokens"] == 20 * len(lines)
