"""POST /v1/embeddings: a text's vector as the base makes it, unit length. On a skin only its adapter applies."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from pando.interface import FeatureRequest, Features
from pando.serve.calls import Call
from pando.serve.errors import ApiError
from pando.serve.respond import respond
from pando.serve.spelled import usage
from pando.serve.wire import EmbeddingBody

router = APIRouter()


@router.post("/v1/embeddings", response_model=None)
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """Embeds texts or token ids, as numbers or as base64 of float32 (little endian)."""

    async def answering(call: Call) -> dict[str, Any]:
        if not call.served.model.capabilities.features:
            raise ApiError(400, f"{body.model} cannot embed texts", param="model", code="unsupported_model")
        adapter = call.served.adapter
        requests = [
            FeatureRequest(text=text, pooling="own", skin=adapter, truncate=body.truncate) for text in body.input
        ]
        found = await call.ask(requests)
        vectors = await call.locally(_vectors, found)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        spent = usage(call.spent().usage)
        del spent["completion_tokens"]
        return {"id": call.id, "object": "list", "data": data, "model": body.model, "usage": spent}

    return respond(request, body.model, "embd", answering)


def _vectors(found: list[Any]) -> Any:
    import numpy as np

    vectors = np.stack([features.vectors[0] for features in found if isinstance(features, Features)])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _encoded(vector: Any, encoding: str) -> Any:
    return vector.tolist() if encoding == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
