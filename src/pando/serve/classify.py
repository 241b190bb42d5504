"""POST /v1/classify: labels with probabilities, from a skin that classifies."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.serve.calls import Call
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.skins import predict
from pando.serve.spelled import usage
from pando.serve.wire import ClassifyBody

router = APIRouter()


@router.post("/v1/classify", response_model=None)
async def classify(body: ClassifyBody, request: Request) -> Response:
    """For each input the label and the probabilities of all labels, in the order of `labels`."""

    async def answering(call: Call) -> dict[str, Any]:
        skin = call.served.skin
        if skin is None or skin.kind != "classify":
            message = f"{body.model} has no labels; name a skin that classifies"
            raise ApiError(400, message, param="model", code="unsupported_model")
        labels = list(skin.labels)
        data = []
        for index, answer in enumerate(await predict(call, skin, body.input, "input")):
            scores = answer.prediction.scores or {}
            entry = {
                "index": index,
                "label": answer.prediction.value,
                "probs": [scores.get(label, 0.0) for label in labels],
                "num_classes": len(labels),
            }
            if answer.refusal:
                entry["refusal"] = answer.refusal
            data.append(entry)
        return {
            "id": call.id,
            "object": "list",
            "created": call.created,
            "model": body.model,
            "labels": labels,
            "data": data,
            "usage": usage(call.spent().usage),
        }

    return respond(request, body.model, "classify", answering)
