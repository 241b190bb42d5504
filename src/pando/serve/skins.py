"""A skin's answers: it says what to ask, the engine answers, it makes a prediction of the answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pando.errors import PandoError, RequestError
from pando.interface import Answer, Completion, GenerateRequest, Request
from pando.serve.calls import Call
from pando.serve.errors import ApiError, as_api_error
from pando.skin import Prediction, Skin


@dataclass(frozen=True)
class Said:
    """A prediction and how it is said: by `text`, or by `refusal` where there is no answer."""

    prediction: Prediction
    text: str | None
    refusal: str | None = None
    reason: str = "stop"

    def card(self, skin: Skin) -> dict[str, Any]:
        """What an answer tells besides its text."""
        found = self.prediction
        return {
            "skin_version": skin.version,
            "confidence": found.confidence,
            "scores": found.scores,
            "abstained": found.abstained,
        }


async def predict(call: Call, skin: Skin, texts: Sequence[str], param: str, limit: int | None = None) -> list[Said]:
    """The skin's answers to `texts`, in order.

    Args:
        param: the field of the texts, named in errors.
        limit: most tokens of a generated answer, if that is less than the skin's own.
    """
    model = call.served.model
    inputs = [_inputs(skin, text, param) for text in texts]
    asked = await call.locally(lambda: [_capped(skin.ask(model, one), limit) for one in inputs])
    try:
        found = iter(await call.ask([request for requests in asked for request in requests]))
    except RequestError as error:
        raise _named(error, param) from None
    answers = [[next(found) for _ in requests] for requests in asked]
    return await call.locally(lambda: [_say(skin, *pair) for pair in zip(inputs, answers, strict=True)])  # type: ignore[no-any-return]


def streams(skin: Skin) -> bool:
    """Whether its answer can be told while it is written: plain text that is never withheld."""
    return skin.kind == "generate" and skin.method == "generate" and skin.abstain is None


async def write(call: Call, skin: Skin, text: str, param: str, limit: int | None = None) -> AsyncGenerator[str | Said]:
    """Submits, then returns the pieces of a generated answer as they come, and at last all of it."""
    model = call.served.model
    inputs = _inputs(skin, text, param)
    requests = await call.locally(lambda: _capped(skin.ask(model, inputs), limit))
    try:
        chunks = await call.stream(requests)
    except RequestError as error:
        raise _named(error, param) from None
    return _pieces(skin, inputs, chunks)


async def _pieces(skin: Skin, inputs: Mapping[str, str], chunks: Any) -> AsyncGenerator[str | Said]:
    """The skin strips its answers: white space waits until text follows it."""
    written, sent = "", 0
    async for _, chunk in chunks:
        written += chunk.text
        start, end = len(written) - len(written.lstrip()), len(written.rstrip())
        if end > max(sent, start):
            yield written[max(sent, start) : end]
            sent = end
        if chunk.completion:
            yield _say(skin, inputs, [[chunk.completion]])


def _inputs(skin: Skin, text: str, param: str) -> Mapping[str, str]:
    """A skin of one field takes the text as it is, one of several a JSON object of them."""
    given: Any = text
    if len(skin.prompt.inputs) > 1:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            message = f"{param}: this skin takes a JSON object with the fields {', '.join(skin.prompt.inputs)}"
            raise ApiError(400, message, param=param, code="invalid_value")
    try:
        return skin.inputs_of(given)
    except PandoError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from None


def _capped(requests: Sequence[Request], limit: int | None) -> list[Request]:
    if limit is None:
        return list(requests)
    return [
        replace(request, max_tokens=min(limit, request.max_tokens)) if isinstance(request, GenerateRequest) else request
        for request in requests
    ]


def _say(skin: Skin, inputs: Mapping[str, str], answers: Sequence[Answer]) -> Said:
    prediction = skin.answer(inputs, answers)
    parts = [part for answer in answers for part in (answer if isinstance(answer, list) else [])]
    cut = any(isinstance(part, Completion) and part.finish_reason == "length" for part in parts)
    reason = "length" if cut else "stop"
    if prediction.abstained:
        sure = "" if prediction.confidence is None else f": its confidence {prediction.confidence:.2f} is too low"
        return Said(prediction, None, f"{skin.name} abstains{sure}", reason)
    if prediction.value is None:
        return Said(prediction, None, f"{skin.name} wrote nothing that can be read as an answer", reason)
    value = prediction.value
    return Said(prediction, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), None, reason)


def _named(error: RequestError, param: str) -> ApiError:
    told = as_api_error(error)
    told.param = param
    return told
