"""What is accepted and what is refused, one row a case: route, what is sent, status, code, field at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import Running

HI = [{"role": "user", "content": "hi"}]
CHAT, TEXT, EMBED, CLASSIFY = "chat/completions", "completions", "embeddings", "classify"
RERANK = "rerank"
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI, "max_tokens": 1},
    TEXT: {"prompt": "hi", "max_tokens": 1},
    EMBED: {"input": "hi"},
    CLASSIFY: {"input": "hi"},
    RERANK: {"query": "hi", "documents": ["a", {"text": "b"}]},
}
DEEP: dict[str, Any] = {"type": "object"}
for _ in range(100):
    DEEP = {"type": "object", "properties": {"x": DEEP}}


def schema(of: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}}


ACCEPTED = [
    (CHAT, {}),
    (CHAT, {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "x"}),
    (CHAT, {"logit_bias": {}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "modalities": ["text"]}),
    (CHAT, {"stop": None, "seed": None, "response_format": None, "logit_bias": None, "temperature": None, "n": None}),
    (CHAT, {"response_format": {"type": "text"}}),
    (CHAT, {"response_format": {"type": "json_object"}}),
    (CHAT, schema({"type": "object", "properties": {"a": {"type": "string"}}})),
    (CHAT, {"temperature": 0, "top_p": 0}),
    (CHAT, {"temperature": 2, "presence_penalty": -2, "frequency_penalty": 2}),
    (CHAT, {"max_completion_tokens": 1}),
    (CHAT, {"max_tokens": 0}),
    (CHAT, {"stop": ["a"] * 16}),
    (CHAT, {"seed": -1}),
    (CHAT, {"top_logprobs": 0}),
    (CHAT, {"logprobs": True, "top_logprobs": 20}),
    (CHAT, {"messages": [{"role": "system", "content": "s"}, *HI, {"role": "assistant", "content": "a"}, *HI]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": None}]}),
    (CHAT, {"messages": [{"role": "assistant", "content": "a", "tool_calls": [], "refusal": None}, *HI]}),
    (CHAT, {"n": 3}),
    (CHAT, {"truncate": "left"}),
    (TEXT, {"prompt": ["a", "b"]}),
    (TEXT, {"prompt": [104, 105]}),
    (TEXT, {"prompt": [[104], [105]]}),
    (TEXT, {"prompt": "ein größeres 東京 🤦🏽\u0000"}),
    (TEXT, {"suffix": "", "best_of": 1}),
    (TEXT, {"n": 2, "best_of": 2}),
    (TEXT, {"logprobs": 0}),
    (TEXT, {"echo": True, "logprobs": 20}),
    (TEXT, {"max_tokens": 0, "echo": True}),
    (TEXT, {"prompt": ["a"] * 128}),
    (EMBED, {"input": ["a"] * 65, "encoding_format": "base64", "user": "me"}),
    (EMBED, {"dimensions": None}),
    (EMBED, {"input_type": "query"}),
    (RERANK, {"top_n": 1, "return_documents": True}),
    (RERANK, {"top_n": 9, "truncate": "left", "user": "me"}),
]

BAD, MISSING, UNKNOWN, UNSUPPORTED = (
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
)
REFUSED = [
    (RERANK, {"query": None}, 400, MISSING, "query"),
    (RERANK, {"documents": []}, 400, BAD, "documents"),
    (RERANK, {"documents": "a"}, 400, BAD, "documents"),
    (RERANK, {"documents": [{"body": "a"}]}, 400, BAD, "documents"),
    (RERANK, {"documents": ["a"] * 2049}, 400, BAD, "documents"),
    (RERANK, {"top_n": 0}, 400, BAD, "top_n"),
    (RERANK, {"max_chunks_per_doc": 2}, 400, UNKNOWN, "max_chunks_per_doc"),
    (EMBED, {"input_type": "clustering"}, 400, BAD, "input_type"),
    (EMBED, {"input_type": "query", "input": [1, 2]}, 400, BAD, "input_type"),
    (EMBED, {f"x{i}": 1 for i in range(5)}, 400, "unknown_parameter", "x0"),
    (CHAT, {"model": "gpt-4"}, 404, "model_not_found", "model"),
    (CHAT, {"model": None}, 400, MISSING, "model"),
    (CHAT, {"model": 7}, 400, BAD, "model"),
    (CHAT, {"messages": None}, 400, MISSING, "messages"),
    (CHAT, {"messages": []}, 400, BAD, "messages"),
    (CHAT, {"messages": "hi"}, 400, BAD, "messages"),
    (CHAT, {"messages": ["hi"]}, 400, BAD, "messages[0]"),
    (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, BAD, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, MISSING, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, BAD, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, 400, BAD, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "name": "me"}]}, 400, UNKNOWN, "messages[0].name"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 400, BAD, "messages[0].content"),
    (
        CHAT,
        {"messages": [*HI, {"role": "user", "content": [{"type": "input_audio"}]}]},
        400,
        UNSUPPORTED,
        "messages[1].content",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 300}]}, 400, "context_length_exceeded", "messages"),
    (CHAT, {"model": "\ud800"}, 400, BAD, "model"),
    (CHAT, {"\ud800": 1}, 400, BAD, None),
    (RERANK, {"documents": ["a", "\ud800"]}, 400, BAD, "documents[1]"),
    (CHAT, {"temprature": 0}, 400, UNKNOWN, "temprature"),
    (CHAT, {"temperature": 2.1}, 400, BAD, "temperature"),
    (CHAT, {"temperature": -0.1}, 400, BAD, "temperature"),
    (CHAT, {"temperature": "0"}, 400, BAD, "temperature"),
    (CHAT, {"temperature": float("nan")}, 400, BAD, "temperature"),
    (CHAT, {"temperature": True}, 400, BAD, "temperature"),
    (CHAT, {"top_p": 1.5}, 400, BAD, "top_p"),
    (CHAT, {"top_k": -1}, 400, BAD, "top_k"),
    (CHAT, {"min_p": 2}, 400, BAD, "min_p"),
    (CHAT, {"repetition_penalty": 0}, 400, BAD, "repetition_penalty"),
    (CHAT, {"presence_penalty": 3}, 400, BAD, "presence_penalty"),
    (CHAT, {"frequency_penalty": -3}, 400, BAD, "frequency_penalty"),
    (CHAT, {"seed": 2**64}, 400, BAD, "seed"),
    (CHAT, {"seed": 1.5}, 400, BAD, "seed"),
    (CHAT, {"n": 0}, 400, BAD, "n"),
    (CHAT, {"n": 1000}, 400, BAD, "n"),
    (CHAT, {"max_tokens": -1}, 400, BAD, "max_tokens"),
    (CHAT, {"max_tokens": 257}, 400, BAD, "max_tokens"),
    (CHAT, {"max_tokens": None, "max_completion_tokens": 10**9}, 400, BAD, "max_completion_tokens"),
    (CHAT, {"max_completion_tokens": 2}, 400, BAD, "max_completion_tokens"),
    (CHAT, {"stop": ["a"] * 17}, 400, BAD, "stop"),
    (CHAT, {"stop": ""}, 400, BAD, "stop"),
    (CHAT, {"stop": "x" * 2000}, 400, BAD, "stop"),
    (CHAT, {"stop": [1]}, 400, BAD, "stop"),
    (CHAT, {"stream": "yes"}, 400, BAD, "stream"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, BAD, "stream_options"),
    (CHAT, {"stream": True, "stream_options": {"usage": True}}, 400, UNKNOWN, "stream_options.usage"),
    (CHAT, {"stream": True, "model": "gpt-4"}, 404, "model_not_found", "model"),
    (
        CHAT,
        {"stream": True, "messages": [{"role": "user", "content": "x" * 300}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    (CHAT, {"logprobs": 3}, 400, BAD, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, BAD, "top_logprobs"),
    (CHAT, {"top_logprobs": 2}, 400, BAD, "top_logprobs"),
    (CHAT, {"logit_bias": {"5": 1}}, 400, UNSUPPORTED, "logit_bias"),
    (CHAT, {"tools": [{"type": "function"}]}, 400, UNSUPPORTED, "tools"),
    (CHAT, {"tool_choice": "required"}, 400, UNSUPPORTED, "tool_choice"),
    (CHAT, {"modalities": ["audio"]}, 400, UNSUPPORTED, "modalities"),
    (CHAT, {"reasoning_effort": "high"}, 400, UNSUPPORTED, "reasoning_effort"),
    (CHAT, {"response_format": "json"}, 400, BAD, "response_format"),
    (CHAT, {"response_format": {"type": "xml"}}, 400, BAD, "response_format.type"),
    (CHAT, {"response_format": {"type": "json_schema"}}, 400, BAD, "response_format.json_schema"),
    (CHAT, schema({"enum": ["\ud800"]}), 400, BAD, "response_format.json_schema"),
    (CHAT, schema({"enum": ["x" * 70_000]}), 400, BAD, "response_format.json_schema"),
    (CHAT, schema(DEEP), 400, BAD, "response_format.json_schema"),
    (TEXT, {"prompt": None}, 400, MISSING, "prompt"),
    (TEXT, {"prompt": ""}, 400, BAD, "prompt"),
    (TEXT, {"prompt": []}, 400, BAD, "prompt"),
    (TEXT, {"prompt": [[]]}, 400, BAD, "prompt"),
    (TEXT, {"prompt": ["a", 5]}, 400, BAD, "prompt"),
    (TEXT, {"prompt": [1.5]}, 400, BAD, "prompt"),
    (TEXT, {"prompt": [-1]}, 400, BAD, "prompt"),
    (TEXT, {"prompt": [True]}, 400, BAD, "prompt"),
    (TEXT, {"prompt": [999_999]}, 400, BAD, "prompt"),
    (TEXT, {"prompt": ["a"] * 129}, 400, BAD, "prompt"),
    (TEXT, {"prompt": "x" * 256}, 400, "context_length_exceeded", "prompt"),
    (TEXT, {"suffix": "end"}, 400, UNSUPPORTED, "suffix"),
    (TEXT, {"best_of": 3}, 400, UNSUPPORTED, "best_of"),
    (TEXT, {"logprobs": 21}, 400, BAD, "logprobs"),
    (TEXT, {"logprobs": True}, 400, BAD, "logprobs"),
    (TEXT, {"stream": True, "echo": True, "logprobs": 1}, 400, UNSUPPORTED, "stream"),
    (TEXT, {"messages": HI}, 400, UNKNOWN, "messages"),
    (EMBED, {"dimensions": 4}, 400, UNSUPPORTED, "dimensions"),
    (EMBED, {"encoding_format": "int8"}, 400, BAD, "encoding_format"),
    (EMBED, {"input": ""}, 400, BAD, "input"),
    (EMBED, {"input": ["a"] * 2049}, 400, BAD, "input"),
    (EMBED, {"input": "x" * 257}, 400, "context_length_exceeded", "input"),
    (CLASSIFY, {}, 400, "unsupported_model", "model"),
    (CLASSIFY, {"input": [1, 2]}, 400, BAD, "input"),
    (CLASSIFY, {"input": 5}, 400, BAD, "input"),
]


def send(server: Running, route: str, sent: dict[str, Any]) -> Any:
    body = {"model": "fake"} | BASE[route] | sent
    raw = json.dumps(body).encode()  # the client would not let NaN and half characters through
    return server.http.post(f"/v1/{route}", content=raw, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("route", "sent"), ACCEPTED, ids=lambda value: str(value)[:60])
def test_accepted(shared: Running, route: str, sent: dict[str, Any]) -> None:
    before = len(shared.ledger.lines())
    answer = send(shared, route, sent)
    assert answer.status_code == 200, answer.text
    assert len(shared.ledger.lines()) == before + 1


@pytest.mark.parametrize(("route", "sent", "status", "code", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(shared: Running, route: str, sent: dict[str, Any], status: int, code: str, param: str) -> None:
    before = shared.ledger.lines()
    answer = send(shared, route, sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 500
    assert shared.ledger.lines() == before  # nothing was spent


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v1/nothing", None, {}, 404),
        ("GET", "/v1/models/gpt-4", None, {}, 404),
        ("GET", "/v1/completions", None, {}, 405),
        ("POST", "/v1/models", b"{}", {}, 405),
        ("OPTIONS", "/v1/completions", None, {"Origin": "http://evil.example"}, 405),
        ("POST", "/v1/completions", b"", {}, 400),
        ("POST", "/v1/completions", b"{", {}, 400),
        ("POST", "/v1/completions", b"[]", {}, 400),
        ("POST", "/v1/completions", b"null", {}, 400),
        ("POST", "/v1/completions", b'"x"', {}, 400),
        ("POST", "/v1/completions", b"\xff\xfe", {}, 400),
        ("POST", "/v1/completions", b"[" * 100_000, {}, 400),
        ("POST", "/v1/completions", b'{"seed": ' + b"9" * 5000 + b"}", {}, 400),
        ("POST", "/v1/completions", b"model=fake", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/completions", b"{}", {"Content-Type": "text/plain"}, 415),
        ("GET", "/v1/models", None, {"Host": "evil.example"}, 403),
        ("GET", "/v1/models", None, {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("GET", "/v1/models", None, {"Host": "[::1]:80"}, 200),
        ("GET", "/health", None, {}, 200),
        ("GET", "/ready", None, {}, 200),
        ("GET", "/docs", None, {}, 404),
        ("GET", "/openapi.json", None, {}, 200),
    ],
)
def test_http(
    shared: Running, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    kind = {"Content-Type": "application/json"} if body is not None else {}
    answer = shared.http.request(method, path, content=body, headers=kind | headers)
    assert answer.status_code == status, answer.text
    assert "access-control-allow-origin" not in answer.headers
    if status >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("side", ["query", "documents"])
def test_a_rerank_names_the_side_that_is_too_long(shared: Running, side: str) -> None:
    long = "x" * 100_000
    asked = {"query": "q", "documents": ["a", "b"]} | {side: long if side == "query" else ["a", long]}
    answer = shared.post(RERANK, **asked)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == side
