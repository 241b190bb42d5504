"""`pando skins`: what skins there are, and what one is made of."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pando.skin import Skin

app = typer.Typer(help="List skins, or show one.", rich_markup_mode=None)

_DEPTH = 4  # folders below the one that is searched
_POOLINGS = {"mean": "mean", "last": "last token", "both": "mean and last token"}
_SHOWN = 10  # labels, demonstrations


@app.command("list")
def list_skins(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, and below.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the skins in a folder: what each does, on which base, and how well."""
    from pando.errors import PandoError, SkinError
    from pando.skin import load_skin

    if not folder.is_dir():
        raise SkinError(f"there is no folder {folder}")
    skins: list[tuple[Path, Skin]] = []
    broken: list[PandoError] = []
    for path in sorted(_find(folder)):
        try:
            skins.append((path, load_skin(path)))
        except PandoError as error:
            broken.append(error)
    if as_json:
        print(json.dumps([_record(path, skin) for path, skin in skins], indent=2, ensure_ascii=False))
    elif skins:
        _print_table(skins)
    elif not broken:
        print(f"No skin in {folder}: make one with pando adapt.")
    for why in broken:
        print(f"pando: {why}", file=sys.stderr)
    if broken:
        raise typer.Exit(2)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="SKIN", help="A skin's folder, or a ladder's.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a skin: its prompt, how it answers, what was measured, and whether it carries training rows."""
    from pando.skin import load_skin
    from pando.skin.store import described

    skin = load_skin(folder)
    if as_json:
        print(json.dumps(_record(folder, skin) | described(skin)[0], indent=2, ensure_ascii=False))
    else:
        print("\n".join(f"{name:<14}{value}" for name, value in _lines(skin)))


def _find(folder: Path) -> Iterator[Path]:
    from pando.skin.store import CARD

    for place, names, files in os.walk(folder):
        if CARD in files:
            yield Path(place)
        deep = len(Path(place).relative_to(folder).parts) >= _DEPTH
        names[:] = [] if deep else [name for name in names if not name.startswith(".")]


def _record(path: Path, skin: Skin) -> dict[str, Any]:
    return {
        "folder": str(path),
        "name": skin.name,
        "version": skin.version,
        "kind": skin.kind,
        "rung": skin.rung,
        "base": asdict(skin.base) if skin.base else None,
        "contains_rows": skin.contains_rows,
        "card": dict(skin.card),
    }


def _print_table(skins: list[tuple[Path, Skin]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a pipe has no width: cut nothing there
    table = Table(box=None, header_style="bold")
    for name in ("name", "kind", "rung", "base", "quality", "training rows", "version", "folder"):
        table.add_column(name, overflow="fold")
    for path, skin in skins:
        base = skin.base.name if skin.base else "-"
        rows = "contained" if skin.contains_rows else "-"
        table.add_row(skin.name, skin.kind, skin.rung, base, _quality(skin), rows, skin.version[7:15], str(path))
    console.print(table)


def _quality(skin: Skin) -> str:
    card = skin.card
    if "quality" not in card:
        return "not measured"
    low, high = ("?" if card.get(end) is None else f"{card[end]:.2f}" for end in ("low", "high"))
    return f"{card['quality']:.3f} [{low}, {high}] {card.get('metric', '')}"


def _lines(skin: Skin) -> Iterator[tuple[str, str]]:
    yield "name", f"{skin.name}, made by the rung {skin.rung}"
    yield "version", skin.version
    yield "base", f"{skin.base.name} ({skin.base.hash[7:19]})" if skin.base else "none is needed"
    yield "kind", skin.kind
    yield "instruction", skin.prompt.instruction
    yield "input", ", ".join(skin.prompt.inputs)
    if skin.labels:
        more = f" and {len(skin.labels) - _SHOWN} more" if len(skin.labels) > _SHOWN else ""
        yield "labels", f"{', '.join(skin.labels[:_SHOWN])}{more}"
    yield "answers", _how(skin)
    if skin.retrieval is not None and skin.retrieval.shortlist:
        yield "shortlist", f"{skin.retrieval.shortlist} labels, by the nearest training rows"
    if skin.grammar is not None:
        yield "grammar", json.dumps(dict(skin.grammar), ensure_ascii=False)
    if skin.abstain is not None:
        yield "abstains", f"below a confidence of {skin.abstain:g}"
    if skin.card:
        about = ", ".join(f"{key} {skin.card[key]}" for key in ("n", "split", "dtype", "engine") if skin.card.get(key))
        yield "measured", f"{_quality(skin)} ({about})"
    yield "training rows", _rows(skin)


def _how(skin: Skin) -> str:
    if skin.method == "floor":
        return f"without a model: {skin.baseline}"
    if skin.reading is not None:
        layers = ", ".join(map(str, skin.reading.layers))
        where = "its prompt" if skin.reading.prompted else "the input alone"
        return f"by a linear classifier on layer {layers}, {_POOLINGS[skin.reading.pooling]} of {where}"
    adapter = ", with a LoRA adapter" if skin.adapter else ""
    if skin.method == "score":
        return f"by the likeliest label{adapter}"
    return f"by writing up to {skin.decoding.max_tokens} tokens{adapter}"


def _rows(skin: Skin) -> str:
    shown = len(skin.demonstrations)
    kept = len(skin.retrieval.rows) if skin.retrieval is not None and skin.retrieval.rows is not None else 0
    if not skin.contains_rows:
        return "none can be read from it"
    what = f"{kept:,} are kept in it to pick demonstrations from" if kept else f"{shown} are in its prompt"
    return f"{what}: whoever gets this skin gets them"
