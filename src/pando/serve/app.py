"""The application: routes, what stands before them, and those that say how the server is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from pando.serve import chat, classify, completions, embeddings, errors, rerank
from pando.serve.errors import to_json
from pando.serve.registry import Served
from pando.serve.security import Gate
from pando.serve.service import Service

router = APIRouter()


def create_app(service: Service, *, keys: Sequence[str] = (), host: str = "127.0.0.1") -> FastAPI:
    """The ASGI application over a service; `keys` are the accepted API keys, `host` the address it is reached at."""
    # Documentation pages would load scripts from elsewhere, and nothing is reported to anybody.
    silent: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    app = FastAPI(title="Pando", docs_url=None, redoc_url=None, telemetry=silent)
    app.state.service = service
    errors.install(app)
    for part in (router, chat.router, completions.router, embeddings.router, classify.router, rerank.router):
        app.include_router(part)
    app.add_middleware(Gate, keys=keys, host=host, refusal=service.refusal, overloaded=service.overloaded)
    return app


@router.get("/v1/models", response_model=None)
async def models(request: Request) -> Response:
    """The base first, then the skins."""
    service: Service = request.app.state.service
    served = await service.in_thread(service.registry.served)
    return _json({"object": "list", "data": [_model(one) for one in served]})


@router.get("/v1/models/{name:path}", response_model=None)
async def model(name: str, request: Request) -> Response:
    """One of them."""
    service: Service = request.app.state.service
    return _json(_model(await service.in_thread(service.registry.resolve, name)))


@router.get("/health", response_model=None)
async def health() -> Response:
    """The process lives."""
    return _json({"status": "ok"})


@router.get("/ready", response_model=None)
async def ready(request: Request) -> Response:
    """Calls are taken: 200, else 503 saying why."""
    service: Service = request.app.state.service
    if refusal := service.refusal():
        raise refusal
    return _json({"status": "ready"})


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(served: Served) -> dict[str, Any]:
    identity = served.model.identity
    entry = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "pando",
        "root": identity.name,
        "parent": identity.name if served.skin else None,
        "max_model_len": served.model.context_length,
        "version": served.version,
        "base": identity.hash,
    }
    if served.skin:
        entry |= {"kind": served.skin.kind, "rung": served.skin.rung, "card": served.skin.card}
    return entry


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")
