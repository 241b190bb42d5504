"""A file of rows through a skin, of any size: in batches, in the file's order, resumable.

    OUT               a line for each answered row: its line in the rows' file, input, value, confidence
    OUT.bad.jsonl     a line for each row that could not be answered, and why
    OUT.state.json    which skin and which rows these are of

Each file has its rows in order and a batch is written to the second before the first, so a killed run leaves all
earlier batches whole and part of the last; going on, rows that are in either file are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pando.errors import DataError, PandoError, RequestError
from pando.files import append_lines, atomic_write, check_format, content_hash
from pando.interface import LanguageModel
from pando.skin.predict import predict_each
from pando.skin.prediction import Prediction
from pando.skin.skin import Skin
from pando.task.formats import BadRow, Row, iter_rows

FORMAT_VERSION = 1
BATCH = 128  # rows that are asked together, and the most that a crash loses
_HEAD = 65536  # bytes at the start of the rows' file that tell it from another


@dataclass
class Tally:
    """How many rows were answered, withheld (the skin abstained), bad, or done by an earlier run."""

    answered: int = 0
    withheld: int = 0
    bad: int = 0
    before: int = 0

    @property
    def rows(self) -> int:
        return self.answered + self.withheld + self.bad + self.before


@dataclass
class _Batch:
    """Rows with their inputs, and rows that have none with why."""

    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


def predict_file(
    skin: Skin,
    model: LanguageModel | None,
    rows: Path,
    out: Path,
    *,
    fresh: bool = False,
    done: Callable[[Sequence[Prediction], int], None] = lambda predictions, count: None,
) -> Tally:
    """Answers every row of `rows`, in order, into `out`; goes on where an earlier run of the same was cut off.

    Args:
        model: the skin's base; None for skins that ask nothing.
        fresh: throw away what an earlier run left.
        done: told of each batch that is on disk: its predictions, and how many rows it had.

    Raises:
        PandoError: the files cannot be read or written, or `out` is of another skin or other rows.
    """
    bad = out.with_name(f"{out.name}.bad.jsonl")
    if fresh:
        for path in (out, bad):
            path.unlink(missing_ok=True)
    _claim(skin, rows, out, fresh)
    tally = Tally()
    known = (_Lines(out), _Lines(bad))
    for batch in _batches(skin, rows, known, tally):
        predictions = predict_each(skin, [inputs for _, inputs in batch.rows], model)
        answered: list[Prediction] = []
        good: list[str] = []
        for (line, inputs), found in zip(batch.rows, predictions, strict=True):
            if isinstance(found, Prediction):
                answered.append(found)
                good.append(_line(line, inputs, found))
            elif isinstance(found, (RequestError, DataError)):
                batch.bad.append((line, str(found)))
            else:
                raise found
        wrong = [json.dumps({"line": line, "why": why}, ensure_ascii=False) for line, why in sorted(batch.bad)]
        for path, lines in ((bad, wrong), (out, good)):
            if lines or path == out:
                append_lines(path, lines)
        tally.bad += len(wrong)
        tally.withheld += sum(p.abstained for p in answered)
        tally.answered += sum(not p.abstained for p in answered)
        done(answered, len(good) + len(wrong))
    return tally


def _batches(skin: Skin, path: Path, known: Sequence[_Lines], tally: Tally) -> Iterator[_Batch]:
    batch = _Batch()
    for row in iter_rows(path):
        if any([lines.have(row.line) for lines in known]):
            tally.before += 1
            continue
        found = _inputs(skin, row)
        if isinstance(found, str):
            batch.bad.append((row.line, found))
        else:
            batch.rows.append((row.line, found))
        if len(batch.rows) + len(batch.bad) == BATCH:
            yield batch
            batch = _Batch()
    if batch.rows or batch.bad:
        yield batch


def _inputs(skin: Skin, row: Row | BadRow) -> dict[str, str] | str:
    """The input fields of a row, or why there are none."""
    if isinstance(row, BadRow):
        return row.why
    try:
        inputs = skin.inputs_of(row.values)
    except DataError as error:
        return str(error)
    return inputs if any(text.strip() for text in inputs.values()) else "no text in the input"


def _line(line: int, inputs: dict[str, str], found: Prediction) -> str:
    record: dict[str, Any] = {"line": line, "input": inputs, "value": found.value, "confidence": found.confidence}
    if found.abstained:
        record["abstained"] = True
    return json.dumps(record, ensure_ascii=False)


def _claim(skin: Skin, rows: Path, out: Path, fresh: bool) -> None:
    """Says whose answers `out` has; an `out` of others is not touched."""
    path = out.with_name(f"{out.name}.state.json")
    try:
        with rows.open("rb") as file:
            head = content_hash(file.read(_HEAD))
    except OSError as error:
        raise DataError(f"{rows} cannot be read: {error.strerror}") from None
    state = {"format_version": FORMAT_VERSION, "skin": skin.version, "rows": head}
    if fresh or not (out.exists() or path.exists()):
        atomic_write(path, json.dumps(state) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check_format(str(path), found.get("format_version"), FORMAT_VERSION)
    except FileNotFoundError:
        raise PandoError(f"{out} exists and is no unfinished prediction: choose another --out, or --fresh") from None
    except (ValueError, AttributeError):
        raise PandoError(f"{path} is damaged: choose another --out, or --fresh to start anew") from None
    for name, what in (("skin", "another skin"), ("rows", "other rows")):
        if found.get(name) != state[name]:
            raise PandoError(f"{out} has answers of {what}: choose another --out, or --fresh to start anew")


class _Lines:
    """The line numbers in a file of an earlier run, asked for in rising order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists():
            append_lines(path, [])  # cuts off a torn last line, so that only whole ones are read
        self._numbers = self._read()
        self._next = next(self._numbers, None)

    def have(self, line: int) -> bool:
        while self._next is not None and self._next < line:
            self._next = next(self._numbers, None)
        return self._next == line

    def _read(self) -> Iterator[int]:
        if not self._path.exists():
            return
        end = self._path.stat().st_size  # what this run appends is not asked for
        with self._path.open("rb") as file:
            while file.tell() < end:
                try:
                    yield int(json.loads(file.readline())["line"])
                except (ValueError, KeyError, TypeError):
                    raise PandoError(f"{self._path} is damaged: choose another --out, or --fresh") from None
