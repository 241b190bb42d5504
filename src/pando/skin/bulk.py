"""A file of rows through a skin, of any size: in batches, in the file's order, resumable.

    OUT               a line for each answered row: its line in the rows' file, input, value, confidence
    OUT.bad.jsonl     a line for each row that could not be answered, and why
    OUT.state.json    which skin, rows, base and numbers these are of

Each file has its rows in order and a batch is written to the second before the first, so a killed run leaves all
earlier batches whole and part of the last; going on, rows that are in either file are passed over.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pando.errors import DataError, PandoError, RequestError
from pando.files import append_lines, atomic_write, check_format
from pando.interface import LanguageModel
from pando.skin.predict import predict_each
from pando.skin.prediction import Prediction
from pando.skin.skin import Skin
from pando.task.formats import BadRow, Row, iter_rows

FORMAT_VERSION = 2
BATCH = 128  # rows that are asked together, and the most that a crash loses
_HEAD = 65536  # bytes of the rows that format 1 told them by


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
    done: Callable[[Sequence[Prediction], int, float], None] = lambda predictions, count, seconds: None,
) -> Tally:
    """Answers every row of `rows`, in order, into `out`; goes on where an earlier run of the same was cut off.

    Args:
        model: the skin's base; None for skins that ask nothing.
        fresh: throw away what an earlier run left.
        done: told of each batch that is on disk: its predictions, how many rows it had, and the seconds that it took
            here, beside the model's.

    Raises:
        PandoError: the files cannot be read or written, `out` is of another skin, other rows, another base or other
            numbers, or one of them would take the place of `rows`.
    """
    bad, state = (out.with_name(f"{out.name}.{name}") for name in ("bad.jsonl", "state.json"))
    if rows.resolve() in {path.resolve() for path in (out, bad, state)}:
        raise PandoError(f"--out {out} would take the place of the rows in {rows}: choose another")
    if fresh and _hash_of(rows, 1):  # nothing is thrown away for rows that cannot be read
        for path in (out, bad, state):
            path.unlink(missing_ok=True)
    _claim(skin, model, rows, out, state)
    tally = Tally()
    known = (_Lines(out), _Lines(bad))
    for batch in _batches(skin, rows, known, tally):
        started = time.thread_time()  # what waits for the engine's thread costs nothing
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
        done(answered, len(good) + len(wrong), time.thread_time() - started)
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


def _claim(skin: Skin, model: LanguageModel | None, rows: Path, out: Path, path: Path) -> None:
    """Says in `path` what answers `out` has; an `out` of others is not touched. Rows may have been added at the end."""
    base, numbers = (model.identity.hash, model.dtype) if model else (None, None)
    state = {"skin": skin.version, "base": base, "dtype": numbers}
    known = _known(out, path) if out.exists() or path.exists() else {}
    kinds = {"skin": "another skin", "base": "another base", "dtype": "other numbers (--dtype)"}
    wrong = [what for name, what in kinds.items() if known.get(name, state[name]) != state[name]]
    if not wrong and known and _hash_of(rows, known.get("bytes", _HEAD)) != known.get("rows"):
        wrong = ["other rows"]
    if wrong:
        raise PandoError(f"{out} has answers of {wrong[0]}: choose another --out, or --fresh to start anew")
    size = rows.stat().st_size if rows.is_file() else 0
    record = {"format_version": FORMAT_VERSION, **state, "rows": _hash_of(rows, size), "bytes": size}
    atomic_write(path, json.dumps(record) + "\n")


def _known(out: Path, path: Path) -> dict[str, Any]:
    """What an earlier run said of `out`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check_format(str(path), found.get("format_version"), FORMAT_VERSION)
    except FileNotFoundError:
        raise PandoError(f"{out} exists and is no unfinished prediction: choose another --out, or --fresh") from None
    except (ValueError, AttributeError):
        raise PandoError(f"{path} is damaged: choose another --out, or --fresh to start anew") from None
    return dict(found)


def _hash_of(rows: Path, size: int) -> str:
    """The hash of the first bytes of the rows' file."""
    digest = hashlib.sha256()
    try:
        with rows.open("rb") as file:
            while size > 0 and (block := file.read(min(size, 1 << 20))):
                digest.update(block)
                size -= len(block)
    except OSError as error:
        raise DataError(f"{rows} cannot be read: {error.strerror}") from None
    return f"sha256:{digest.hexdigest()}"


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
