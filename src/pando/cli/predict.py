"""`pando predict`: every row of a file through a skin, however many there are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pando.skin import Prediction


def command(
    skin: Annotated[Path, typer.Argument(metavar="SKIN", help="A skin's folder, or a ladder's.", show_default=False)],
    rows: Annotated[
        Path,
        typer.Argument(metavar="ROWS", help="JSONL, CSV, TSV or Parquet, plain, .gz or .zst.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Where the answers go, a JSON line for each row.")] = Path("preds.jsonl"),
    base: Annotated[str | None, typer.Option(help="A base to use instead of the skin's own (with --force).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Use a base that the skin was not made on.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what an earlier run left in --out.")] = False,
) -> None:
    """Answer every row of a file. Stopped or killed, the same command goes on where it was."""
    from pando.engine import load
    from pando.files import progress
    from pando.interface import Usage
    from pando.ledger import Seconds, open_ledger
    from pando.settings import load_settings
    from pando.skin import load_skin
    from pando.skin.bases import checked, reference
    from pando.skin.bulk import predict_file

    found = load_skin(skin)
    model = None
    if found.base is not None:
        model = checked(found, load(base or reference(found.base), device=device, dtype=dtype), force=force)
    settings = load_settings()
    with open_ledger() as ledger, progress(None, "predict: rows") as advance:

        def done(predictions: Sequence[Prediction], count: int, here: float) -> None:
            seconds = here + sum(p.latency.compute for p in predictions)
            ledger.record(
                "call",
                skin=found.name,
                skin_version=found.version,
                base=model.identity if model else None,
                usage=sum((p.usage for p in predictions), Usage()),
                seconds=Seconds(compute=seconds),
                usd=settings.usd(seconds),
                detail={"route": "predict", "rows": count},
            )
            advance(count)

        tally = predict_file(found, model, rows, out, fresh=fresh, done=done)
    if model:
        model.close()
    said = [f"{tally.rows:,} rows", f"{tally.answered:,} answered"]
    said += [f"{tally.withheld:,} withheld"] if tally.withheld else []
    said += [f"{tally.bad:,} bad (see {out}.bad.jsonl)"] if tally.bad else []
    said += [f"{tally.before:,} done before"] if tally.before else []
    print(f"{', '.join(said)}: {out}", file=sys.stderr)
