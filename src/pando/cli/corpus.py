"""`pando corpus`: documents become token shards, and every document can be asked after."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pando.errors import PandoError

if TYPE_CHECKING:
    from pando.corpus.build import Build
    from pando.corpus.config import Config

app = typer.Typer(help="Turn documents into token shards, and ask what became of each.", rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The corpus file, corpus.yaml.", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A corpus that was built.", show_default=False)]
Out = Annotated[Path, typer.Option(help="The corpus; DIR.work beside it keeps finished steps.", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", help="Replace a setting, as quality.min=0.7; repeatable.")]
Threads = Annotated[int, typer.Option(min=0, help="Worker threads; 0 is every core.")]
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster, or local; without it, this process.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    file: File, out: Out, set_: Set = None, threads: Threads = 0, ray: Ray = None, as_json: AsJson = False
) -> None:
    """Build the corpus; the same command goes on where a killed one stopped."""
    from pando.corpus import build as building
    from pando.corpus import engine
    from pando.corpus.config import load_config
    from pando.files import atomic_write
    from pando.report import corpus as report

    config = load_config(file, set_ or [])
    engine.start(threads, ray)
    manifest = building.build(config, out, work_folder(out), protected(config))
    found = report.summary(manifest)
    print(json.dumps(manifest, indent=2, ensure_ascii=False) if as_json else found)
    from pando.corpus.records import counts

    out = out.absolute()
    atomic_write(out.with_name(out.name + ".html"), report.page(counts(out)))
    print(f"Written: {out}, {out.with_name(out.name + '.html')}", file=sys.stderr)


@app.command()
def why(
    folder: Folder,
    id: Annotated[str, typer.Argument(metavar="ID", help="A document's id, or enough of it.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what became of one document, by which rule, score and threshold."""
    from pando.corpus.records import why
    from pando.report.corpus import document

    found = why(folder, id)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else document(found))


@app.command()
def trace(
    folder: Folder,
    shard: Annotated[str, typer.Argument(metavar="SHARD", help="As train-00000.", show_default=False)],
    offset: Annotated[int, typer.Argument(metavar="OFFSET", help="Of the token, from 0.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Lead a token of a shard back to its document and bytes."""
    from pando.corpus.records import trace
    from pando.report.corpus import traced

    found = trace(folder, shard, offset)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else traced(found))


@app.command()
def stats(
    folder: Folder,
    html: Annotated[Path | None, typer.Option(help="Also write the page with plots here.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each stage took by source, and the token mix asked and got."""
    from pando.corpus.records import counts
    from pando.files import atomic_write
    from pando.report import corpus as report

    found = counts(folder)
    if html:
        atomic_write(html, report.page(found))
    print(json.dumps(report.as_json(found), indent=2, ensure_ascii=False) if as_json else report.stats(found))


@app.command("what-if")
def what_if(file: File, out: Out, set_: Set = None, threads: Threads = 0, as_json: AsJson = False) -> None:
    """Say what other thresholds would keep, from stored scores, without reading a text again."""
    import numpy as np

    from pando.corpus import engine
    from pando.corpus.config import load_config
    from pando.corpus.decide import column
    from pando.corpus.records import difference, tokens_of
    from pando.report import corpus as report

    if not set_:
        raise PandoError("what-if needs at least one --set, as --set quality.min=0.7")
    before, after = load_config(file), load_config(file, set_)
    engine.start(threads)
    one, other = _scored(before, out), _scored(after, out)
    parts, changed = one.parts(), other.parts()
    decisions = one.decide(parts), other.decide(changed)
    source = np.repeat([part.source for part in parts], [part.rows for part in parts]).astype(np.int64)
    size = column(parts, "final", "text_bytes").to_numpy(zero_copy_only=False).astype(np.int64)
    rows = difference(*decisions, source, tokens_of(out, column(parts, "read", "id")), size)
    for row in rows:
        row["source"] = before.sources[row["source"]].name
    print(json.dumps(rows, indent=2) if as_json else report.what_if(rows, set_))


@app.command("train-quality")
def train_quality(
    good: Annotated[list[str], typer.Option(help="Files of texts that are wanted; repeatable.", show_default=False)],
    bad: Annotated[list[str], typer.Option(help="Files of texts that are not; repeatable.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The classifier, a .safetensors file.")] = Path("quality.safetensors"),
    text: Annotated[str, typer.Option(help="Column or field that holds the text.")] = "text",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    most: Annotated[int, typer.Option(min=20, help="At most so many texts a side.")] = 50_000,
) -> None:
    """Train a quality classifier on texts that are wanted and texts that are not."""
    from pando.corpus.quality import train

    found = train(_texts(good, text, most), _texts(bad, text, most), out, seed)
    print(
        f"{out}: trained on {found['documents'] - found['held_out']:,} texts; on {found['held_out']:,} held out "
        f"accuracy {found['accuracy']:.3f}, area under the curve {found['auc']:.3f}"
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of corpus files, for editors."""
    from pando.corpus.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def work_folder(out: Path) -> Path:
    """Where the finished steps of a corpus are kept."""
    out = out.absolute()
    if not out.name:
        raise PandoError(f"{out} can be no corpus: name a new folder in it")
    return out.with_name(out.name + ".work")


def protected(config: Config) -> Iterator[tuple[str, str]]:
    """The items that `decontaminate` looks for: every field of text of its tasks' rows and of its data files' rows.

    Raises:
        PandoError: a task or a file cannot be read.
    """
    from pando.errors import DataError
    from pando.files import matching
    from pando.task.file import Task
    from pando.task.formats import Row, iter_rows

    def rows(path: Path) -> Iterator[Row]:
        for row in iter_rows(path):
            if not isinstance(row, Row):  # an item that cannot be read would not be looked for
                raise DataError(f"decontaminate: {path}:{row.line}: {row.why}; mend the row or take it out")
            yield row

    wanted = config.stages.decontaminate
    if wanted is None:
        return
    for file in wanted.tasks:
        task = Task.load(config.path(file))
        for path in filter(None, (task.train_path, task.test_path)):
            for row in rows(path):
                for field in (*task.fields.input, task.fields.output):
                    if isinstance(row.values.get(field), str):
                        yield f"{task.name}:{path.name}:{row.line}", row.values[field]
    for pattern in wanted.files:
        found = matching(config.folder, pattern)
        if not found:
            raise DataError(f"decontaminate: {pattern} names no file; check the path (it starts at {config.folder})")
        for place in found:
            name = place.relative_to(config.folder) if place.is_relative_to(config.folder) else Path(*place.parts[-2:])
            for row in rows(place):
                for value in row.values.values():
                    if isinstance(value, str):
                        yield f"{name}:{row.line}", value


def _scored(config: Config, out: Path) -> Build:
    """The build of a file whose scores must all be there."""
    from pando.corpus.build import Build

    class Stored(Build):
        def _run(self, function: str, tasks: list[dict[str, Any]], label: str) -> None:
            if tasks and function != "link":
                raise PandoError(
                    f"{label}: {len(tasks)} are missing; this setting changes scores, or the corpus was never built: "
                    "run `pando corpus build` with it"
                )
            super()._run(function, tasks, label)

    return Stored(config, work_folder(out), protected(config))


def _texts(patterns: list[str], field: str, most: int) -> list[str]:
    from pando.corpus.readers import How, documents
    from pando.errors import DataError
    from pando.files import matching

    texts: list[str] = []
    for pattern in patterns:
        found = matching(Path.cwd(), pattern)
        if not found:
            raise DataError(f"{pattern} names no file")
        for path in found:
            with path.open("rb") as file:
                for one in documents(file, str(path), "auto", How(field, "utf-8", 16_000_000)):
                    if one.text is not None:
                        texts.append(one.text)
                    if len(texts) == most:
                        return texts
    return texts
