"""`pando upcycle`: a mixture of experts from a dense base."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    base: Annotated[str, typer.Argument(help="A dense base: pulled, a folder or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder of the mixture.", show_default=False)],
    experts: Annotated[int, typer.Option(help="Experts of each layer.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts that a token goes to.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the routers' weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a mixture of experts of a dense base. It says what the base says, until it is trained further."""
    from pando.errors import PandoError
    from pando.files import replaceable
    from pando.model.anatomy import facts
    from pando.model.base import open_base
    from pando.model.export import HF_FILES
    from pando.model.upcycle import upcycle
    from pando.report.anatomy import picture

    if out.exists() and not force:
        raise PandoError(f"{out} exists already; choose another --out, or replace it with --force")
    out = replaceable(out, "config.json", *HF_FILES)
    found = facts(upcycle(open_base(base), out, experts, top_k, seed), out.name)
    print(json.dumps(found, indent=1) if as_json else "\n".join(picture(found)))
    print(f"Written: {out}", file=sys.stderr)
