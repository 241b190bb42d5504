"""POST /v1/rerank: documents in the order of how near their vectors are to a query's (cosine), or of how well a
cross-encoder says that they answer it (a probability). Fields are called as in the APIs of Cohere and Jina.
"""

from __future__ import annotations

import math
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.errors import RequestError
from pando.interface import ScoreRequest, Scores
from pando.serve.calls import Call
from pando.serve.embeddings import embed
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.spelled import usage
from pando.serve.wire import RerankBody

router = APIRouter()


@router.post("/v2/rerank", response_model=None)  # where Cohere's second client asks
@router.post("/v1/rerank", response_model=None)
async def rerank(body: RerankBody, request: Request) -> Response:
    """The best documents first, each with its place in the request and its score."""

    async def answering(call: Call) -> dict[str, Any]:
        skin = call.served.skin
        if skin is not None and skin.method == "search" and skin.reading is None:
            message = f"{body.model} knows words, not vectors; name a base, or a skin that searches by vectors"
            raise ApiError(400, message, param="model", code="unsupported_model")
        searches = skin is not None and skin.method == "search"
        if call.served.model.capabilities.pairs and not searches:
            asked = [  # one by one, so that a long list leaves room for other callers
                ScoreRequest(context=body.query, continuations=[one], skin=call.served.adapter, truncate=body.truncate)
                for one in body.documents
            ]
            told = cast("list[Scores]", await call.ask(asked))
            return _answer(call, body, [math.exp(one.logprobs[0]) for one in told])
        texts, sides = [body.query, *body.documents], ["query", *["document"] * len(body.documents)]
        vectors = await embed(call, texts, sides, body.truncate)  # type: ignore[arg-type]
        return _answer(call, body, (vectors[1:] @ vectors[0]).tolist())

    async def named(call: Call) -> dict[str, Any]:
        try:
            return await answering(call)
        except RequestError as error:
            if error.param == "text":
                error.param = "query" if error.place == 0 else "documents"
            elif error.param == "continuations":
                error.param = "documents"
            raise

    return respond(request, body.model, "rerank", named)


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
