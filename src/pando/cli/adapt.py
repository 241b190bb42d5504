"""`pando adapt`: the ladder on one task."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Mode(StrEnum):
    """How the rungs are run."""

    climb = "climb"
    sweep = "sweep"


def command(
    task: Annotated[Path, typer.Argument(metavar="TASK", help="The task file, task.yaml.", show_default=False)],
    base: Annotated[str, typer.Option(help="A pulled base, a Hugging Face folder or a .gguf file.")] = "smollm2-135m",
    out: Annotated[
        Path | None,
        typer.Option(help="Working folder; the same one again goes on where it was. [default: ladders/<task name>]"),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="climb stops at the first rung that meets the quality target, sweep measures all.")
    ] = Mode.climb,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8.")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run left in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")] = False,
) -> None:
    """Climb the ladder: measure every rung on a task and decide."""
    from pando.adapt.ladder import adapt
    from pando.files import atomic_write
    from pando.report.html import page
    from pando.report.terminal import show

    report = adapt(task, base, out, mode=mode.value, device=device, dtype=dtype, fresh=fresh)
    atomic_write(report.folder / "report.html", page(report.data))
    if as_json:
        print(json.dumps(report.data, indent=1, ensure_ascii=False))
        return
    show(report.data)
    made = [report.folder / "report.html", *([report.folder / "skin"] if report.chosen else [])]
    print(f"Written: {', '.join(map(str, made))}", file=sys.stderr)
