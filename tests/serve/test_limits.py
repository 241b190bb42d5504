"""Who may call, how much, and what happens when callers leave or there are too many of them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable

import httpx
import openai
import pytest

from pando.errors import PandoError
from pando.serve import respond, security
from pando.serve.security import check_address, key_name
from tests.serve.conftest import Running
from tests.serve.fake_model import FakeModel

ASK = [{"role": "user", "content": "say it"}]


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("sent", ["", "Bearer wrong", "Bearer", "secret-key", "bearer secret-key", "Bearer sécret"])
def test_a_wrong_key_is_refused(start: Callable[..., Running], sent: str) -> None:
    server = start(keys=("secret-key", "other-key"))
    headers = {"Authorization": sent.encode("latin-1")} if sent else {}
    for path in ("/v1/models", "/metrics", "/nothing"):
        answer = httpx.get(server.url + path, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{server.url}/health").status_code == httpx.get(f"{server.url}/ready").status_code == 200


def test_each_key_is_accounted_for_by_name(start: Callable[..., Running]) -> None:
    server = start(keys=("secret-key", "other-key"))
    for key in ("secret-key", "other-key"):
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key)
        client.completions.create(model="fake", prompt="x", max_tokens=1)
    assert [line["key"] for line in server.ledger.lines()] == [key_name("secret-key"), key_name("other-key")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", ""])
def test_other_addresses_need_a_key(host: str) -> None:
    with pytest.raises(PandoError, match="needs a key"):
        check_address(host, [])
    check_address(host, ["secret"])
    with pytest.raises(PandoError, match="printable"):
        check_address(host, ["se cret"])


def test_too_large_a_body_is_refused_before_it_is_read(server: Running) -> None:
    answer = server.post("completions", prompt="x" * (security.MAX_BODY + 1))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def pieces() -> object:
        for _ in range(security.MAX_BODY // 65536 + 2):
            yield b" " * 65536

    chunked = server.http.post("/v1/completions", content=pieces(), headers={"Content-Type": "application/json"})
    assert chunked.status_code == 413


def test_ten_megabytes_in_one_field_leave_the_server_well(server: Running) -> None:
    assert server.post("completions", prompt="x" * (10 << 20)).status_code == 413
    assert server.post("completions", prompt="x" * (4 << 20)).json()["error"]["code"] == "context_length_exceeded"
    assert server.post("completions", prompt="x", max_tokens=1).status_code == 200


def test_a_body_that_never_comes_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_SECONDS", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_too_much_text_under_way_is_told_to_come_back(
    server: Running, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "MAX_BODIES", 2000)
    answer = server.post("completions", prompt="x" * 3000)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert b"pando_requests_refused_total 1.0" in server.http.get("/metrics").content
    assert server.post("completions", prompt="x", max_tokens=1).status_code == 200


def test_a_full_queue_is_told_to_come_back_and_recovers(start: Callable[..., Running], model: FakeModel) -> None:
    server = start(max_queue=3)
    model.seconds_per_token = 0.05
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(server.post("completions", prompt="x", max_tokens=20, ignore_eos=True))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 9 and len(answers) == 12
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert refused[0].json()["error"]["type"] == "rate_limit_error"
    model.seconds_per_token = 0
    assert server.post("completions", prompt="x", max_tokens=1).status_code == 200
    assert len(server.ledger.lines()) == 4
    assert b"pando_requests_refused_total 9.0" in server.http.get("/metrics").content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_caller_that_leaves_frees_the_engine(server: Running, model: FakeModel, stream: bool) -> None:
    model.seconds_per_token = 0.02
    body = {"model": "fake", "prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": stream, "n": 2}
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=0.3) as answer,
    ):
        for _ in answer.iter_bytes():
            time.sleep(0.3)
            raise httpx.ReadTimeout("enough")
    left = time.monotonic()
    until(lambda: model.running == 0)
    assert time.monotonic() - left < 1.0  # 200 tokens twice would take eight seconds
    until(lambda: len(server.ledger.lines()) == 1 and server.service.under_way == 0)
    (line,) = server.ledger.lines()
    assert line["detail"]["status"] == "cancelled" and 0 < line["completion_tokens"] < 200


def test_one_bad_prompt_of_a_batch_frees_the_others(server: Running, model: FakeModel) -> None:
    model.seconds_per_token = 0.02
    answer = server.post("completions", prompt=["x"] * 5 + ["y" * 300], max_tokens=200, ignore_eos=True)
    assert answer.status_code == 400
    until(lambda: model.running == 0, 1.0)


def test_loading_and_draining_are_503(server: Running) -> None:
    for status in ("loading", "draining"):
        server.service.status = status  # type: ignore[assignment]
        rerank = server.http.post("/v2/rerank", json={"query": "x", "documents": ["y"]})
        for answer in (server.post("chat/completions", messages=ASK), rerank, server.http.get("/ready")):
            assert (
                answer.status_code == 503 and answer.headers["retry-after"] and answer.json()["error"]["code"] == status
            )
        assert server.http.get("/health").status_code == server.http.get("/metrics").status_code == 200
    server.service.status = "ready"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_does_not_end_in_time_is_cut_off_and_told_so(server: Running, model: FakeModel, stream: bool) -> None:
    model.seconds_per_token = 0.05
    answers: list[httpx.Response] = []
    sent = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": stream}
    asking = threading.Thread(target=lambda: answers.append(server.post("completions", **sent)))
    asking.start()
    until(lambda: model.running == 1)
    time.sleep(0.2)
    drained = asyncio.run_coroutine_threadsafe(server.service.drain(0.2), server.loop)
    assert drained.result(10) is False
    asking.join()
    text = answers[0].text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(text)["error"]["code"] == "server_stopping"
    assert answers[0].status_code == (200 if stream else 503)
    (line,) = server.ledger.lines()
    assert line["detail"]["status"] == "cut off" and 0 < line["completion_tokens"] < 200
    assert model.running == 0


def test_a_caller_that_does_not_read_is_given_up(
    server: Running, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(respond, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(FakeModel, "context_length", 1_000_000)
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "fake", "prompt": "x", "max_tokens": 20_000, "stream": True, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: len(server.ledger.lines()) == 1, 30.0)
    for _ in range(200):  # the call is let go of shortly after its line is written
        if server.service.under_way == 0:
            break
        time.sleep(0.05)
    assert server.ledger.lines()[0]["detail"]["status"] == "cancelled" and server.service.under_way == 0


def test_failures_are_no_latencies_and_samples_have_gaps_of_their_own(server: Running) -> None:
    assert server.post("completions", prompt="y" * 300, max_tokens=5).status_code == 400
    assert "pando_time_to_first_token_seconds_count{" not in server.http.get("/metrics").text
    answer = server.post("completions", prompt="hello", max_tokens=5, temperature=0, ignore_eos=True, n=3)
    assert answer.status_code == 200
    text = server.http.get("/metrics").text
    assert 'pando_inter_token_latency_seconds_count{skin="fake"} 3.0' in text
    assert 'pando_time_to_first_token_seconds_count{skin="fake"} 1.0' in text


def test_metrics_tell_what_was_spent_by_skin(server: Running) -> None:
    answer = server.post("completions", prompt="hello", max_tokens=5, temperature=0, ignore_eos=True)
    assert answer.status_code == 200
    text = server.http.get("/metrics").text
    for line in (
        'pando_request_success_total{finished_reason="length",skin="fake"} 1.0',
        'pando_prompt_tokens_total{skin="fake"} 5.0',
        'pando_cached_tokens_total{skin="fake"} 4.0',
        'pando_generation_tokens_total{skin="fake"} 5.0',
        'pando_compute_seconds_total{skin="fake"} 0.01',
        'pando_usd_total{skin="fake"} 0.01',
        'pando_time_to_first_token_seconds_count{skin="fake"} 1.0',
        'pando_inter_token_latency_seconds_count{skin="fake"} 1.0',
        'pando_e2e_request_latency_seconds_count{skin="fake"} 1.0',
        "pando_num_requests_running 0.0",
        "pando_kv_cache_usage_perc 0.25",
        "pando_engine_busy_seconds_total 0.5",
    ):
        assert line in text, line


def test_a_ledger_that_cannot_be_written_fails_the_call(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(lines: object) -> None:
        raise PandoError("the ledger cannot be written, the disk is full: make room")

    monkeypatch.setattr(server.ledger, "write", full)
    answer = server.post("completions", prompt="x", max_tokens=1)
    assert answer.status_code == 500 and "ledger" in answer.json()["error"]["message"]
    assert server.service.under_way == 0


def test_many_callers_at_once_all_get_their_own_answer(server: Running, model: FakeModel) -> None:
    """Whatever is under way, nobody gets another's text, and the ledger adds up."""
    model.seconds_per_token = 0.001
    alone = {i: server.post("completions", prompt=f"p{i}", max_tokens=8, temperature=0).json() for i in range(40)}
    found: dict[int, dict] = {}

    def ask(i: int) -> None:
        found[i] = server.post("completions", prompt=f"p{i}", max_tokens=8, temperature=0).json()

    threads = [threading.Thread(target=ask, args=[i]) for i in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {i: a["choices"] for i, a in found.items()} == {i: a["choices"] for i, a in alone.items()}
    assert server.ledger.summary("kind")[0]["lines"] == 80
    answers = [*alone.values(), *found.values()]
    generated = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert server.ledger.summary("kind")[0]["completion_tokens"] == generated
