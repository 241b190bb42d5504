"""`pando task`: look at a task file before anything is spent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check a task file, show what a model sees of it, print its schema.", rich_markup_mode=None)

_File = Annotated[Path, typer.Argument(metavar="FILE", help="The task file, task.yaml.", show_default=False)]


@app.command()
def check(
    file: _File,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as JSON on standard output.")] = False,
) -> None:
    """Read the task and all its rows, and say what is wrong and what would be used."""
    from pando.task import check as checks
    from pando.task.file import Task, TaskFileError

    try:
        account = checks.check(Task.load(file))
    except TaskFileError as error:  # all that is wrong, where other verbs stop at the first
        for problem in error.problems:
            print(f"pando: {problem}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    lines = account.pop("lines")
    print(json.dumps(account, indent=2, ensure_ascii=False) if as_json else "\n".join([*lines, "the task is sound"]))


@app.command()
def schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    from pando.task.file import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def show(
    file: _File,
    rung: Annotated[str, typer.Option(help="The rung whose view is shown.")] = "zero",
    n: Annotated[int, typer.Option("-n", min=1, help="How many training rows.")] = 1,
) -> None:
    """Print what the model sees of some rows, what is masked in training, and what is expected back."""
    from pando.adapt.show import show
    from pando.task.file import Task

    print(show(Task.load(file), rung, n))
