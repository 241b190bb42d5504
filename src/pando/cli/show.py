"""`pando show`: a base as a picture in text, or two of them compared."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    base: Annotated[
        str, typer.Argument(help="A pulled base, a folder (its config.json is enough), a config.json or a .gguf file.")
    ],
    other: Annotated[str | None, typer.Argument(help="Another one, to compare with.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a base is made of and what it costs to hold and to run. No weights are read."""
    from pando.model.anatomy import config_of, facts
    from pando.report.anatomy import compared, picture

    found, notes = [], []
    for ref in [base] if other is None else [base, other]:
        config, name, noted = config_of(ref)
        found.append(facts(config, name))
        notes += [f"{name}: {note}" for note in noted]
    if as_json:
        print(json.dumps(found[0] if other is None else found, indent=1))
        return
    for one in found:
        print("\n".join(picture(one)) + "\n")
    if other is not None:
        print("\n".join(compared(*found)))
    for note in notes:
        print(note)
