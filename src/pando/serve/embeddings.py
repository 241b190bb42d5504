"""POST /v1/embeddings: a text's vector, unit length, as the base makes it or as a skin that searches reads it. On any
other skin only its adapter applies.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.interface import FeatureRequest, Features, Side
from pando.serve.calls import Call
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.spelled import usage
from pando.serve.wire import EmbeddingBody
from pando.skin.methods import search_request
from pando.skin.search import unit

router = APIRouter()


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """Embeds texts or token ids, as numbers or as base64 of float32 (little endian)."""

    if body.input_type is not None and not all(isinstance(text, str) for text in body.input):
        raise ApiError(
            400,
            "input_type puts a prompt before texts, and these are token ids",
            param="input_type",
            code="invalid_value",
        )

    async def answering(call: Call) -> dict[str, Any]:
        vectors = await embed(call, body.input, [body.input_type] * len(body.input), body.truncate)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        spent = usage(call.spent().usage)
        del spent["completion_tokens"]
        return {"id": call.id, "object": "list", "data": data, "model": body.model, "usage": spent}

    return respond(request, body.model, "embd", answering)


async def embed(
    call: Call,
    texts: Sequence[str | Sequence[int]],
    sides: Sequence[Side | None],
    truncate: Literal["error", "left", "right"],
) -> Any:
    """Vectors float32 [n, d] of unit length. A `side` puts the prompt of queries or of documents before a text. A skin
    that searches reads texts as it read its documents, at their heads.

    Raises:
        ApiError: the model shows no hidden states.
    """
    if not call.served.model.capabilities.features:
        raise ApiError(400, f"{call.served.name} cannot embed texts", param="model", code="unsupported_model")
    skin, adapter = call.served.skin, call.served.adapter
    if skin is None or skin.method != "search" or skin.reading is None:
        requests = [
            FeatureRequest(text=text, pooling="own", side=side, skin=adapter, truncate=truncate)
            for text, side in zip(texts, sides, strict=True)
        ]
        return await call.locally(_vectors, await call.ask(requests), None)
    assert skin.documents is not None
    requests = [search_request(skin, text, side) for text, side in zip(texts, sides, strict=True)]
    return await call.locally(_vectors, await call.ask(requests), skin.documents.mean)


def _vectors(found: list[Any], mean: Any) -> Any:
    import numpy as np

    return unit(np.stack([features.vectors[0] for features in found if isinstance(features, Features)]), mean)


def _encoded(vector: Any, encoding: str) -> Any:
    return vector.tolist() if encoding == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
