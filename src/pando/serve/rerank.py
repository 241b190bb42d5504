"""POST /v1/rerank: documents in the order of how near their vectors are to a query's (cosine), or of how well a
cross-encoder says that they answer it (a probability). Fields are called as in the APIs of Cohere and Jina.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.interface import ScoreRequest, Scores
from pando.serve.calls import Call
from pando.serve.embeddings import embed
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.spelled import usage
from pando.serve.wire import RerankBody

router = APIRouter()


@router.post("/v1/rerank", response_model=None)
async def rerank(body: RerankBody, request: Request) -> Response:
    """The best documents first, each with its place in the request and its score."""

    async def answering(call: Call) -> dict[str, Any]:
        skin = call.served.skin
        if skin is not None and skin.method == "search" and skin.reading is None:
            message = f"{body.model} knows words, not vectors; name a base, or a skin that searches by vectors"
            raise ApiError(400, message, param="model", code="unsupported_model")
        if call.served.model.capabilities.pairs:
            if body.truncate == "right":
                message = "truncate must be 'error' or 'left' for a model that reads query and document together"
                raise ApiError(400, message, param="truncate", code="invalid_value")
            asked = ScoreRequest(
                context=body.query,
                continuations=body.documents,
                skin=call.served.adapter,
                truncate=body.truncate,
            )
            (told,) = await call.ask([asked])
            assert isinstance(told, Scores)
            return _answer(call, body, [math.exp(score) for score in told.logprobs])
        texts, sides = [body.query, *body.documents], ["query", *["document"] * len(body.documents)]
        vectors = await embed(call, texts, sides, body.truncate)  # type: ignore[arg-type]
        return _answer(call, body, (vectors[1:] @ vectors[0]).tolist())

    return respond(request, body.model, "rerank", answering)


def _answer(call: Call, body: RerankBody, scores: list[float]) -> dict[str, Any]:
    order = sorted(range(len(scores)), key=lambda place: -scores[place])[: body.top_n]
    results = [
        {
            "index": place,
            "relevance_score": scores[place],
            **({"document": {"text": body.documents[place]}} if body.return_documents else {}),
        }
        for place in order
    ]
    spent = usage(call.spent().usage)
    del spent["completion_tokens"]
    return {"id": call.id, "object": "list", "model": body.model, "results": results, "usage": spent}
