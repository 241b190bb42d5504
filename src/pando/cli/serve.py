"""`pando serve`: the base and all skins over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pando.serve.registry import Registry


def command(
    base: Annotated[
        str, typer.Argument(help="The base model: a pulled name, a folder or a .gguf file.")
    ] = "smollm2-135m",
    skins: Annotated[
        Path | None, typer.Option(help="A skin, what `pando adapt --out` wrote, or a folder of these.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that callers must send; may be repeated. Safer in PANDO_API_KEY (comma-separated)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    max_queue: Annotated[int, typer.Option(min=1, help="Most calls under way; more get a 429.")] = 256,
) -> int:
    """Serve a base model and its skins as OpenAI does, with a ledger line for every call."""
    from pando.ledger import open_ledger
    from pando.serve.run import listen, run
    from pando.serve.security import check_address
    from pando.serve.service import Service
    from pando.settings import load_settings

    keys = api_key or [key.strip() for key in os.environ.get("PANDO_API_KEY", "").split(",") if key.strip()]
    check_address(host, keys)
    listening = listen(host, port)
    found_port = listening.getsockname()[1]
    name = f"[{host}]" if ":" in host else host

    def opened() -> Registry:
        from pando.engine import load
        from pando.serve.registry import Registry

        return Registry(load(base, device=device, dtype=dtype), skins)

    def ready(registry: Registry) -> None:
        names = ", ".join(served.name for served in registry.served())
        print(f"serving {names} at http://{name}:{found_port}/v1", flush=True)

    print(f"pando serve: loading {base}", file=sys.stderr, flush=True)
    with open_ledger() as ledger:
        service = Service(ledger, load_settings(), max_queue=max_queue)
        return run(service, opened, listening, host=host, keys=keys, ready=ready)
