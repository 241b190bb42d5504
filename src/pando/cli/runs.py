"""`pando runs`: pretraining runs, what became of them, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Show pretraining runs: losses, speed, cost, side by side.", rich_markup_mode=None)


@app.callback()
def _runs() -> None:
    """Show pretraining runs: losses, speed, cost, side by side."""


@app.command()
def show(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show runs: shape, losses with a plot, speed, cost; forecast against actual; what differs between them."""
    from pando.files import atomic_write
    from pando.report.runs import page, show_runs
    from pando.train.runs import read_runs

    found = [run.as_dict() for run in read_runs(folders)]
    if html is not None:
        atomic_write(html, page(found))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show_runs(found)
