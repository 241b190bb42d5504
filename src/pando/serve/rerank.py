"""POST /v1/rerank: documents in the order of how near their vectors are to a query's (cosine). Fields are called as in
the APIs of Cohere and Jina.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.serve.calls import Call
from pando.serve.embeddings import embed
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.spelled import usage
from pando.serve.wire import RerankBody

router = APIRouter()


@router.post("/v1/rerank", response_model=None)
async def rerank(body: RerankBody, request: Request) -> Response:
    """The best documents first, each with its place in the request and its score between -1 and 1."""

    async def answering(call: Call) -> dict[str, Any]:
        skin = call.served.skin
        if skin is not None and skin.method == "search" and skin.reading is None:
            message = f"{body.model} knows words, not vectors; name a base, or a skin that searches by vectors"
            raise ApiError(400, message, param="model", code="unsupported_model")
        texts, sides = [body.query, *body.documents], ["query", *["document"] * len(body.documents)]
        vectors = await embed(call, texts, sides, body.truncate)  # type: ignore[arg-type]
        scores = vectors[1:] @ vectors[0]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[: body.top_n]
        results = [
            {
                "index": place,
                "relevance_score": float(scores[place]),
                **({"document": {"text": body.documents[place]}} if body.return_documents else {}),
            }
            for place in order
        ]
        spent = usage(call.spent().usage)
        del spent["completion_tokens"]
        return {"id": call.id, "object": "list", "model": body.model, "results": results, "usage": spent}

    return respond(request, body.model, "rerank", answering)
