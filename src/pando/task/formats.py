"""Rows out of JSONL, CSV, TSV and Parquet files, plain, gzip or zstd: one at a time, whatever their size.

A row that cannot be read is handed on as a `BadRow` with its line; only a file that cannot be read at all raises.
Memory is bounded by the longest line, work by how far a compressed file may grow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pando.errors import DataError

MAX_LINE = 16 * 2**20  # bytes
_MAX_GROWTH = 300  # text hardly packs better than 1:50; a bomb does
_GROWTH_FROM = 100 * 2**20  # bytes before growth is judged
_SURROGATES = {chr(code) for code in range(0xDC80, 0xDD00)}  # what `surrogateescape` makes of bytes that are not UTF-8


@dataclass(frozen=True)
class Row:
    """A row's fields as the file has them; `line` is where it starts (for Parquet: its number), from 1."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    why: str


def iter_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """Streams the rows of a file, its format told by its suffix. Blank lines are no rows.

    Raises:
        DataError: no such file, an unknown suffix, damaged compression or Parquet, no or a double header in a CSV.
    """
    path = Path(path)
    read, packing = _format(path)
    try:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(path.open("rb"))
            if packing:
                file = stack.enter_context(_unpacked(file, packing, path))
            yield from read(file, path)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name the file with the rows") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _format(path: Path) -> tuple[Callable[[BinaryIO, Path], Iterator[Row | BadRow]], str]:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packing = {".gz": "gzip", ".zst": "zstd"}.get(suffixes[-1] if suffixes else "", "")
    suffix = "".join(suffixes[-2:-1] if packing else suffixes[-1:])
    readers: dict[str, Callable[[BinaryIO, Path], Iterator[Row | BadRow]]] = {
        ".jsonl": _jsonl,
        ".csv": partial(_csv, delimiters=",;\t"),
        ".tsv": partial(_csv, delimiters="\t"),
        ".parquet": _parquet,
    }
    if suffix not in readers:
        raise DataError(f"{path}: rows are read from .jsonl, .csv, .tsv and .parquet files, plain, .gz or .zst")
    return readers[suffix], packing


class _Unpacked(io.RawIOBase):
    """The plain bytes of a compressed file, up to a growth that no honest text reaches."""

    def __init__(self, source: Any, packing: str, limit: int, path: Path) -> None:
        self._source, self._packing, self._limit, self._path, self._read = source, packing, limit, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{self._path}: damaged {self._packing} data ({error}); fetch or make it again") from None
        self._read += len(data)
        if self._read > self._limit:
            raise DataError(
                f"{self._path} grows over {_MAX_GROWTH} times when unpacked; if it is sound, unpack it first"
            )
        buffer[: len(data)] = data
        return len(data)


def _unpacked(file: BinaryIO, packing: str, path: Path) -> BinaryIO:
    limit = max(_GROWTH_FROM, _MAX_GROWTH * path.stat().st_size)
    if packing == "gzip":
        source: Any = gzip.GzipFile(fileobj=file)
    else:
        import pyarrow  # unlike zstandard's own reader it tells a torn file from a whole one

        source = pyarrow.CompressedInputStream(file, "zstd")
    return io.BufferedReader(_Unpacked(source, packing, limit, path), 2**16)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without a leading byte order mark; None stands for one over the limit."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{path} is UTF-16; save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, None
        else:
            yield number, line


def _jsonl(file: BinaryIO, path: Path) -> Iterator[Row | BadRow]:
    for number, line in _lines(file, path):
        if line is None:
            yield BadRow(number, f"the line is over {MAX_LINE:,} bytes")
        elif line.strip():
            try:
                values = parse_json(line.decode().rstrip())
            except UnicodeDecodeError as error:
                yield BadRow(
                    number, f"byte 0x{line[error.start]:02x} at {error.start + 1} is not UTF-8; save the file as UTF-8"
                )
            except ValueError as error:
                yield BadRow(number, f"not JSON: {error}")
            else:
                yield Row(number, values) if isinstance(values, dict) else BadRow(number, "not a JSON object")


def parse_json(text: str) -> Any:
    """JSON as it is written down: without NaN and Infinity, of sane depth.

    Raises:
        ValueError: anything else.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _csv(file: BinaryIO, path: Path, delimiters: str) -> Iterator[Row | BadRow]:
    # the limit is the module's own and holds for the whole process: it is only ever raised
    csv.field_size_limit(max(MAX_LINE, csv.field_size_limit()))
    lines = _csv_lines(file, path)
    first = next(lines, "")
    try:
        delimiter = max(delimiters, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
        reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
        header = _header(next(reader, []), path)
    except csv.Error as error:
        raise DataError(f"{path}:1: the header is not CSV: {error}") from None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(start, f"not CSV: {error}; is a quotation mark left open?")
        else:
            if cells:
                yield _csv_row(start, header, cells)


def _csv_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    for number, line in _lines(file, path):
        if line is None:
            raise DataError(f"{path}:{number}: the line is over {MAX_LINE:,} bytes")
        yield line.decode("utf-8", "surrogateescape")


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _header(cells: list[str], path: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    named = [name for name in header if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice or not named:
        what = f"names {', '.join(twice)} twice" if twice else "names no field"
        raise DataError(f"{path}:1: the first line, the header, {what}")
    if not _SURROGATES.isdisjoint("".join(header)):
        raise DataError(f"{path}:1: the header is not UTF-8; save the file as UTF-8")
    return header


def _csv_row(line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(line, f"has {len(cells)} cells where the header has {len(header)}")
    if any(not cell.isascii() and not _SURROGATES.isdisjoint(cell) for cell in cells):
        return BadRow(line, "holds bytes that are not UTF-8; save the file as UTF-8")
    return Row(line, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _parquet(file: BinaryIO, path: Path) -> Iterator[Row | BadRow]:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as plain:
        if not file.seekable():  # Parquet is read from its end
            while block := file.read(2**20):
                plain.write(block)
            file = plain
        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise DataError(f"{path}: damaged Parquet after row {number}: {error}") from None
