"""A skin's answers: it says what to ask, the engine answers, it makes a prediction of the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pando.errors import PandoError
from pando.serve.calls import Call
from pando.serve.errors import ApiError
from pando.skin import Prediction, Skin


@dataclass(frozen=True)
class SkinAnswer:
    """A prediction, and how it is said: `text`, or where the skin abstains only why (`refusal`)."""

    prediction: Prediction
    text: str | None
    refusal: str | None
    version: str

    def card(self) -> dict[str, Any]:
        """What a chat answer tells besides its text."""
        return {
            "skin_version": self.version,
            "confidence": self.prediction.confidence,
            "scores": self.prediction.scores,
            "abstained": self.prediction.abstained,
        }


async def predict(call: Call, texts: Sequence[str], param: str) -> list[SkinAnswer]:
    """The skin's answers to `texts`, in order; `param` names their field in errors."""
    assert call.served is not None
    skin, model = call.served.skin, call.served.model
    assert skin is not None
    inputs = [_input(skin, text, param) for text in texts]
    asked = await call.locally(lambda: [skin.ask(model, one) for one in inputs])
    answers = iter(await call.ask([request for requests in asked for request in requests]))
    grouped = [[next(answers) for _ in requests] for requests in asked]
    predictions = await call.locally(
        lambda: [skin.answer(one, found) for one, found in zip(inputs, grouped, strict=True)]
    )
    return [_said(prediction, skin) for prediction in predictions]


def _input(skin: Skin, text: str, param: str) -> dict[str, str]:
    """A skin of one field takes the text as it is, one of several a JSON object of them."""
    given: Any = text
    if len(skin.prompt.inputs) > 1:
        try:
            given = json.loads(text)
        except ValueError:
            given = None
        if not isinstance(given, dict):
            message = f"{param}: this skin takes a JSON object with the fields {', '.join(skin.prompt.inputs)}"
            raise ApiError(400, message, param=param, code="invalid_value")
    try:
        return skin.inputs_of(given)
    except PandoError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from None


def _said(prediction: Prediction, skin: Skin) -> SkinAnswer:
    if prediction.abstained:
        sure = f" with confidence {prediction.confidence:.2f}" if prediction.confidence is not None else ""
        return SkinAnswer(prediction, None, f"{skin.name} abstains{sure}", skin.version)
    value = prediction.value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return SkinAnswer(prediction, text, None, skin.version)
