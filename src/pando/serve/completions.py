"""POST /v1/completions: plain continuation, also how lm-eval scores. On a skin only its adapter applies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.interface import Answer, Completion, GenerateRequest, LanguageModel
from pando.serve.calls import Call
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.spelled import CompletionLogprobs, prompt_entries, text_of, usage
from pando.serve.wire import CompletionBody

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continues texts or token ids, streamed or not; `echo` with `logprobs` scores the prompt itself."""
    if body.stream and body.echo and body.logprobs is not None:
        # the prompt's log-probabilities are known only once the answer is complete
        raise ApiError(400, "echo with logprobs is not streamed", param="stream", code="unsupported_parameter")

    async def answering(call: Call) -> dict[str, Any] | AsyncGenerator[dict[str, Any]]:
        requests = _requests(call, body)
        if body.stream:
            return _events(call, body, await call.stream(requests))
        answers = await call.ask(requests)
        # thousands of tokens take a while to spell
        choices = await call.service.in_thread(_choices, call, body, answers)
        return _head(call, body) | {"choices": choices, "usage": usage(call.spent().usage)}

    return respond(request, body.model, "cmpl", answering)


def check_limit(model: LanguageModel, limit: int, param: str = "max_tokens") -> int:
    """Refuses to promise more tokens than the model's context."""
    if limit > model.context_length:
        message = f"{param} is {limit}, but this model holds {model.context_length} tokens in all"
        raise ApiError(400, message, param=param, code="invalid_value")
    return limit


def _requests(call: Call, body: CompletionBody) -> list[GenerateRequest]:
    limit = check_limit(call.served.model, body.limit)
    scores = body.logprobs if body.echo else None
    more: dict[str, Any] = {"logprobs": body.logprobs, "prompt_logprobs": scores, "skin": call.served.adapter}
    return [body.generate(limit, prompt=prompt, **more) for prompt in body.prompts]


def _choices(call: Call, body: CompletionBody, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = []
    for prompt, completions in zip(body.prompts, answers, strict=True):
        assert isinstance(completions, list)
        choices += [_choice(call, body, prompt, completion) for completion in completions]
    return [choice | {"index": index} for index, choice in enumerate(choices)]


def _choice(call: Call, body: CompletionBody, prompt: str | list[int], completion: Completion) -> dict[str, Any]:
    model = call.served.model
    before = _echoed(model, prompt, completion.prompt_tokens) if body.echo else ""
    logprobs = None
    if body.logprobs is not None:
        entries = prompt_entries(completion) if body.echo else []
        assert completion.logprobs is not None
        entries += [(entry.token, entry) for entry in completion.logprobs]
        logprobs = CompletionLogprobs(model).add(entries)
    return {
        "text": before + completion.text,
        "logprobs": logprobs,
        "finish_reason": completion.finish_reason,
    }


def _echoed(model: LanguageModel, prompt: str | list[int], tokens: list[int]) -> str:
    """The prompt as it was sent, or the text of its token ids."""
    return prompt if isinstance(prompt, str) else text_of(model, tokens)


async def _events(call: Call, body: CompletionBody, chunks: Any) -> AsyncGenerator[dict[str, Any]]:
    model = call.served.model
    head = _head(call, body) | ({"usage": None} if body.include_usage else {})

    def event(index: int, text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        return head | {"choices": [choice]}

    spelling = [CompletionLogprobs(model) for _ in range(len(body.prompt) * body.n)]
    if body.echo:
        for place, prompt in enumerate(body.prompts):
            text = _echoed(model, prompt, prompt if isinstance(prompt, list) else [])
            for index in range(place * body.n, (place + 1) * body.n):
                yield event(index, text)
    async for place, chunk in chunks:
        index = place * body.n + chunk.index
        logprobs = None
        if chunk.logprobs:
            logprobs = spelling[index].add([(entry.token, entry) for entry in chunk.logprobs])
        if chunk.text or logprobs:
            yield event(index, chunk.text, logprobs)
        if chunk.completion:
            yield event(index, "", reason=chunk.completion.finish_reason)
    if body.include_usage:
        yield head | {"choices": [], "usage": usage(call.spent().usage)}


def _head(call: Call, body: CompletionBody) -> dict[str, Any]:
    return {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": body.model,
        "system_fingerprint": call.served.fingerprint,
    }
