"""POST /v1/chat/completions: a chat with the base, or a skin's answer to the last user message."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.interface import Completion, LanguageModel
from pando.serve.calls import Call
from pando.serve.completions import check_limit
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.skins import Said, predict, streams, write
from pando.serve.spelled import chat_logprobs, usage
from pando.serve.wire import ChatBody
from pando.skin import Skin

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def chat(body: ChatBody, request: Request) -> Response:
    """Answers a chat, streamed or not."""

    async def answering(call: Call) -> dict[str, Any] | AsyncGenerator[dict[str, Any]]:
        skin = call.served.skin
        return await (_with_base(call, body) if skin is None else _with_skin(call, body, skin))

    return respond(request, body.model, "chatcmpl", answering)


async def _with_base(call: Call, body: ChatBody) -> dict[str, Any] | AsyncGenerator[dict[str, Any]]:
    model = call.served.model
    param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = check_limit(model, _room(body, model) if body.limit is None else body.limit, param)
    messages = [message.message() for message in body.messages]
    request = body.generate(limit, messages=messages, logprobs=body.top_logprobs if body.logprobs else None)
    if body.stream:
        return _base_events(call, body, await call.stream([request]))
    (completions,) = await call.ask([request])
    assert isinstance(completions, list)
    choices = await call.service.in_thread(lambda: [_base_choice(call, completion) for completion in completions])
    return _head(call, body) | {"choices": choices, "usage": usage(call.spent().usage)}


def _room(body: ChatBody, model: LanguageModel) -> int:
    """Tokens of an answer that may be as long as it likes; a chat that is cut to fit must leave it some room."""
    return model.context_length if body.truncate == "error" else model.context_length // 2


def _base_choice(call: Call, completion: Completion) -> dict[str, Any]:
    logprobs = None if completion.logprobs is None else chat_logprobs(call.served.model, completion.logprobs)
    return _choice(completion.index, completion.text, completion.finish_reason, logprobs=logprobs)


async def _base_events(call: Call, body: ChatBody, chunks: Any) -> AsyncGenerator[dict[str, Any]]:
    event = _eventer(call, body)
    for index in range(body.n):
        yield event(index, {"role": "assistant", "content": ""})
    async for _, chunk in chunks:
        logprobs = chat_logprobs(call.served.model, chunk.logprobs) if chunk.logprobs else None
        if chunk.text or logprobs:
            yield event(chunk.index, {"content": chunk.text}, logprobs=logprobs)
        if chunk.completion:
            yield event(chunk.index, {}, reason=chunk.completion.finish_reason)
    if body.include_usage:
        yield _event_head(call, body) | {"choices": [], "usage": usage(call.spent().usage)}


async def _with_skin(call: Call, body: ChatBody, skin: Skin) -> dict[str, Any] | AsyncGenerator[dict[str, Any]]:
    _check_skin_fields(body)
    text = next((message.content for message in reversed(body.messages) if message.role == "user"), None)
    if text is None:
        raise ApiError(400, "a skin answers the last user message, and there is none", param="messages")
    if body.stream and streams(skin):
        return _skin_events(call, body, skin, await write(call, skin, text, "messages", body.limit))
    (said,) = await predict(call, skin, [text], "messages", body.limit)
    if body.stream:
        return _skin_events(call, body, skin, _at_once(said))
    choice = _choice(0, said.text, said.reason, refusal=said.refusal)
    head = _head(call, body) | {"pando": said.card(skin)}
    return head | {"choices": [choice], "usage": usage(call.spent().usage)}


async def _at_once(said: Said) -> AsyncGenerator[str | Said]:
    if said.text:
        yield said.text
    yield said


async def _skin_events(
    call: Call, body: ChatBody, skin: Skin, pieces: AsyncGenerator[str | Said]
) -> AsyncGenerator[dict[str, Any]]:
    event = _eventer(call, body)
    yield event(0, {"role": "assistant", "content": ""})
    async for piece in pieces:
        if isinstance(piece, str):
            yield event(0, {"content": piece})
        else:
            delta = {"refusal": piece.refusal} if piece.refusal else {}
            yield event(0, delta, reason=piece.reason) | {"pando": piece.card(skin)}
    if body.include_usage:
        yield _event_head(call, body) | {"choices": [], "usage": usage(call.spent().usage)}


def _check_skin_fields(body: ChatBody) -> None:
    """A skin's decoding is part of what was measured: it cannot be changed from outside, only cut short.

    A skin takes the likeliest answer: temperature 0 asks for that, and no seed changes it.
    """
    fixed = {
        "temperature": body.temperature not in (0.0, 1.0),
        "top_p": body.top_p != 1,
        "top_k": body.top_k > 1,
        "min_p": body.min_p != 0,
        "n": body.n != 1,
        "logprobs": body.logprobs,
        "stop": body.stop,
        "stop_token_ids": body.stop_token_ids,
        "response_format": body.response_format is not None and body.response_format.type != "text",
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty != 1,
        "ignore_eos": body.ignore_eos,
        "truncate": body.truncate != "error",
    }
    for field, given in fixed.items():
        if given:
            message = f"{field} is fixed by the skin; leave it out, or name the base model"
            raise ApiError(400, message, param=field, code="unsupported_parameter")


def _head(call: Call, body: ChatBody, kind: str = "chat.completion") -> dict[str, Any]:
    return {
        "id": call.id,
        "object": kind,
        "created": call.created,
        "model": body.model,
        "system_fingerprint": call.served.fingerprint,
    }


def _event_head(call: Call, body: ChatBody) -> dict[str, Any]:
    # with include_usage every chunk has the field, null but in the last
    return _head(call, body, "chat.completion.chunk") | ({"usage": None} if body.include_usage else {})


def _eventer(call: Call, body: ChatBody) -> Any:
    head = _event_head(call, body)

    def event(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return head | {"choices": [choice]}

    return event


def _choice(
    index: int, text: str | None, reason: str, *, logprobs: Any = None, refusal: str | None = None
) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": refusal},
        "logprobs": logprobs,
        "finish_reason": reason,
    }
