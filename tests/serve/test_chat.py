from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import openai
import pytest

from tests.serve.conftest import Running
from tests.serve.fake_model import FakeModel

ASK = [{"role": "user", "content": "say it"}]


def events(response: httpx.Response) -> list[dict]:
    """The JSON of a stream's events; it must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream") and lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_has_every_field_of_the_reference(server: Running) -> None:
    answer = server.openai.chat.completions.create(model="fake", messages=ASK, max_tokens=12, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason in ("stop", "length")
    assert answer.object == "chat.completion" and answer.model == "fake" and answer.created > 1e9
    assert answer.usage and answer.usage.prompt_tokens == len("user: say it\nassistant: ")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.system_fingerprint == "fp_ffffffffffff"


def test_a_stream_says_the_same_as_the_whole(server: Running) -> None:
    asked = dict(model="fake", messages=ASK, max_tokens=20, temperature=0.7, seed=3, n=3)
    whole = server.openai.chat.completions.create(**asked)
    texts, reasons, usage = {0: "", 1: "", 2: ""}, {}, None
    for chunk in server.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        usage = chunk.usage or usage
    assert [texts[i] for i in range(3)] == [choice.message.content for choice in whole.choices]
    assert [reasons[i] for i in range(3)] == [choice.finish_reason for choice in whole.choices]
    assert len(set(texts.values())) > 1
    assert usage == whole.usage


def test_events_of_a_stream(server: Running) -> None:
    body = {"messages": ASK, "max_tokens": 3, "temperature": 0, "stream": True}
    found = events(server.post("chat/completions", **body, stream_options={"include_usage": True}))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in found} == {"chat.completion.chunk"} and len({e["id"] for e in found}) == 1
    assert [event["usage"] is None for event in found] == [True] * (len(found) - 1) + [False]
    assert found[-1]["choices"] == []
    assert "usage" not in events(server.post("chat/completions", **body))[-1]


def test_logprobs(server: Running) -> None:
    asked = dict(model="fake", messages=ASK, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    (choice,) = server.openai.chat.completions.create(**asked).choices
    assert choice.logprobs and choice.logprobs.content
    for entry in choice.logprobs.content:
        assert bytes(entry.bytes or []).decode() == entry.token and entry.logprob < 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token  # greedy
    streamed = [
        entry
        for chunk in server.openai.chat.completions.create(**asked, stream=True)
        for part in chunk.choices
        if part.logprobs
        for entry in part.logprobs.content or []
    ]
    assert streamed == choice.logprobs.content
    assert server.openai.chat.completions.create(model="fake", messages=ASK, logprobs=True, max_tokens=1)


def test_json_schema(server: Running) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    answer = server.openai.chat.completions.create(model="fake", messages=ASK, response_format=form)
    assert set(json.loads(answer.choices[0].message.content or "")) == {"name", "age"}
    assert server.model.requests[-1].schema == schema
    server.post("chat/completions", messages=ASK, response_format={"type": "json_object"})
    assert server.model.requests[-1].schema == {"type": "object"}


def test_every_field_reaches_the_model(server: Running) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    sent = {
        "messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "seed": 11,
        "stop": "zz",
        "stop_token_ids": [5],
        "n": 2,
        "ignore_eos": True,
        "truncate": "left",
    }
    assert server.post("chat/completions", **sent).status_code == 200
    request = server.model.requests[-1]
    assert request.messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one\ntwo"}]
    assert request.max_tokens == 7 and request.stop == ("zz",) and request.stop_token_ids == (5,)
    same = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    for name in (*same, "seed", "n", "ignore_eos", "truncate"):
        assert getattr(request, name) == sent[name], name


def test_an_answer_has_room_unless_told_otherwise(server: Running) -> None:
    server.post("chat/completions", messages=ASK)
    server.post("chat/completions", messages=ASK, truncate="left")
    assert [request.max_tokens for request in server.model.requests] == [256, 128]


def test_errors_through_the_client(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        server.openai.chat.completions.create(model="gpt-4", messages=ASK)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="300") as long:
        server.openai.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * 282}])
    assert long.value.code == "context_length_exceeded" and "256" in str(long.value)
    with pytest.raises(openai.BadRequestError) as image:
        part = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}
        server.openai.chat.completions.create(model="fake", messages=[{"role": "user", "content": [part]}])  # type: ignore[list-item]
    assert image.value.code == "unsupported_parameter" and image.value.param == "messages[0].content"


def test_a_model_that_breaks_is_a_500_and_says_nothing_of_its_inside(server: Running, model: FakeModel) -> None:
    model.broken = True
    with pytest.raises(openai.InternalServerError) as broken:
        server.openai.chat.completions.create(model="fake", messages=ASK)
    assert broken.value.code == "internal_error" and "broke" not in str(broken.value)


def test_an_error_inside_a_stream_has_the_usual_shape(server: Running, model: FakeModel) -> None:
    model.fails_after = 2
    seen = []
    with pytest.raises(openai.APIError) as broken:
        for chunk in server.openai.chat.completions.create(
            model="fake", messages=ASK, stream=True, temperature=0, extra_body={"ignore_eos": True}
        ):
            seen.append(chunk)
    assert broken.value.code == "internal_error" and len(seen) == 3  # the role and two tokens came through
    assert [line["detail"]["status"] for line in server.ledger.lines()] == ["error"]


def test_each_call_is_one_ledger_line(start: Callable[..., Running]) -> None:
    server = start(keys=("secret-key",))
    answer = server.openai.chat.completions.create(model="fake", messages=ASK, max_tokens=5, n=2, temperature=0)
    list(server.openai.chat.completions.create(model="fake", messages=ASK, max_tokens=5, stream=True))
    first, second = server.ledger.lines()
    assert first["id"] == answer.id and first["base"] == "fake" and first["base_hash"] == "sha256:" + "f" * 64
    assert first["key"].startswith("key-") and "secret" not in str(first)
    assert answer.usage and first["completion_tokens"] == answer.usage.completion_tokens
    assert first["prompt_tokens"] == answer.usage.prompt_tokens and first["cached_tokens"] == 4
    assert first["compute_seconds"] == pytest.approx(0.02) and first["usd"] == pytest.approx(0.02)
    assert first["detail"] == {"route": "/v1/chat/completions", "status": "success"}
    assert second["detail"]["status"] == "success" and second["id"].startswith("chatcmpl-")
