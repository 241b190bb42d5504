"""Files to documents, one reader for each format. What cannot be read becomes a document with a `problem`."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from pando.corpus.chat import chat_text
from pando.corpus.pages import html_text
from pando.errors import DataError

PACKINGS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = {
    ".txt": "text",
    ".rst": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".warc": "warc",
}
CODE = frozenset((
    ".py", ".pyi", ".js", ".jsx", ".ts", ".tsx", ".java", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go",
    ".rs", ".rb", ".php", ".swift", ".kt", ".scala", ".sh", ".sql", ".lua", ".pl", ".r", ".jl", ".m", ".hs",
    ".ml", ".ex", ".erl", ".clj", ".css", ".scss", ".toml", ".yaml", ".yml",
))  # fmt: skip
_CONTROL = bytes(set(range(32)) - {9, 10, 12, 13, 27})
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeError)
_WIDE = ("utf-16", "utf-32")  # whose bytes look binary


@dataclass(frozen=True)
class Found:
    """One document as a file holds it.

    Attributes:
        row: line or record, from 1.
        text: None if it cannot be used, and then `problem` says why in a word or two.
        size: bytes of the document as found.
        name: what the file calls it (the address of a web page), else empty.
    """

    row: int
    text: str | None
    size: int
    problem: str | None = None
    name: str = ""


@dataclass(frozen=True)
class How:
    """What a reader must know: field of the text, encoding, bytes beyond which a document is left out."""

    text: str
    encoding: str
    most: int


def format_of(path: str) -> tuple[str, str]:
    """(format, packing) by the file's name; packing is "", "gzip" or "zstd". Unknown names are text."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    packing = PACKINGS.get(suffixes[-1], "") if suffixes else ""
    last = (suffixes[:-1] if packing else suffixes)[-1:]
    if not last:
        return "text", packing
    return SUFFIXES.get(last[0], "code" if last[0] in CODE else "text"), packing


def documents(file: BinaryIO, name: str, kind: str, how: How) -> Iterator[Found]:
    """The documents of an open file, in order.

    Raises:
        DataError: the field that the corpus file names is in no row, or the format needs a package that is missing.
    """
    guessed, packing = format_of(name)
    reader = _READERS[guessed if kind == "auto" else kind]
    row = 0
    try:
        with _unpacked(file, packing) as plain:
            for found in reader(plain, name, how):
                row = found.row
                yield found
    except _UNREADABLE as error:
        yield Found(row + 1, None, 0, f"file damaged: {error}"[:120])


@contextlib.contextmanager
def _unpacked(file: BinaryIO, packing: str) -> Iterator[BinaryIO]:
    if packing == "gzip":
        with gzip.GzipFile(fileobj=file) as plain:
            yield plain  # type: ignore[misc]
    elif packing == "zstd":
        import pyarrow as pa  # unlike zstandard's own reader it tells a torn file from a whole one

        with pa.CompressedInputStream(file, "zstd") as plain:
            yield io.BufferedReader(plain, 1 << 16)  # what stands before a tear is still read
    else:
        yield file


def canonical(encoding: str) -> str:
    """The encoding's own name; UTF-8 may begin with a mark of its byte order."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        return encoding
    return "utf-8-sig" if name == "utf-8" else name


def decoded(data: bytes, how: How) -> tuple[str | None, str | None]:
    """(text, None) or (None, problem): "huge", "binary", "encoding" or "empty"."""
    if len(data) > how.most:
        return None, "huge"
    encoding = canonical(how.encoding)
    if looks_binary(data) and not encoding.startswith(_WIDE):
        return None, "binary"
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None, "encoding"
    return (text, None) if text and not text.isspace() else (None, "empty")


def looks_binary(data: bytes) -> bool:
    """Whether bytes are no text: a NUL, or more than one in twenty a control character, in the first 64 KiB."""
    head = data[: 1 << 16]
    return b"\0" in head or (len(head) - len(head.translate(None, _CONTROL))) * 20 > len(head)


def checked(text: Any, row: int, how: How, name: str = "") -> Found:
    """A string of a row as a document."""
    if not isinstance(text, str):
        return Found(row, None, 0, "no text", name)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return Found(row, None, len(text), "encoding", name)
    plain, problem = decoded(data, How(how.text, "utf-8", how.most))
    return Found(row, None if plain is None else text, len(data), problem, name)


def _whole(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    data = file.read(how.most + 1)
    size = len(data)
    while len(data) and size > how.most:
        data = file.read(1 << 20)
        size += len(data)
        if not data:
            yield Found(1, None, size, "huge")
            return
    text, problem = decoded(data, how)
    yield Found(1, text, size, problem)


def _html(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    data = file.read(how.most + 1)
    if len(data) > how.most:
        yield Found(1, None, len(data), "huge")
        return
    found = checked(html_text(data), 1, how) if data.strip() else Found(1, None, 0, "empty")
    yield Found(1, found.text, len(data), found.problem)


def _lines(file: BinaryIO, most: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(line number, line without its end or None where it is over `most` bytes, its size)."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        size = len(line)
        if size > most and not line.endswith(b"\n"):
            while rest := file.readline(1 << 20):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield number, None, size
        else:
            yield number, line, size


def _jsonl(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    for row in _json_rows(file, how):
        if isinstance(row, Found):
            yield row
        else:
            number, value = row
            yield checked(value, number, how)


def _json_rows(file: BinaryIO, how: How) -> Iterator[Found | tuple[int, Any]]:
    """(line number, value of the field or None) of every line, or what is wrong with it."""
    encoding = canonical(how.encoding)
    if encoding.startswith(_WIDE):
        raise DataError(f"encoding: {how.encoding} does not part JSON lines at bytes; save them as UTF-8")
    for number, line, size in _lines(file, 2 * how.most):  # escapes make JSON longer than its text
        if line is None:
            yield Found(number, None, size, "huge")
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line if encoding == "utf-8-sig" else line.decode(encoding))
        except UnicodeDecodeError:
            yield Found(number, None, size, "encoding")
            continue
        except (ValueError, RecursionError):
            yield Found(number, None, size, "binary" if looks_binary(line) else "not JSON")
            continue
        yield number, row.get(how.text) if isinstance(row, dict) else None


def _parquet(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    for row, value in enumerate(_parquet_rows(file, name, how), 1):
        if isinstance(value, bytes):
            text, problem = decoded(value, How(how.text, "utf-8", how.most))
            yield Found(row, text, len(value), problem)
        else:
            yield Found(row, None, 0, "no text")


def _parquet_rows(file: BinaryIO, name: str, how: How) -> Iterator[Any]:
    """The values of the column; texts as bytes, None where one cannot be told."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as whole:
        if not file.seekable():  # it is read from its end
            shutil.copyfileobj(file, whole)
            file = cast("BinaryIO", whole)
        try:
            table = pq.ParquetFile(file)
            if how.text not in table.schema_arrow.names:
                raise DataError(
                    f"{name} has no column {how.text!r}; it has {', '.join(table.schema_arrow.names)}: set text:"
                )
            for batch in table.iter_batches(256, columns=[how.text]):
                column = batch.column(0)
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                if pa.types.is_string_view(column.type):
                    column = column.cast(pa.large_string())
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                    column = column.cast(pa.large_binary())
                yield from map(_value, column)
        except pa.ArrowException as error:
            raise EOFError(str(error)) from None


def _value(scalar: Any) -> Any:
    """An Arrow value as Python's, or None: text that is no UTF-8, a time that no calendar has."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return None


def _csv(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    csv.field_size_limit(max(how.most * 2, 131072))
    plain = PurePosixPath(name.lower().removesuffix(".gz").removesuffix(".zst"))
    encoding = canonical(how.encoding)
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", file))
    if looks_binary(buffered.peek(4096)[:4096]) and not encoding.startswith(_WIDE):
        yield Found(1, None, 0, "binary")
        return
    text = io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline="")
    lines = _Lines(text)
    try:
        lines.first = text.readline()
        delimiter = max("\t" if plain.suffix == ".tsv" else ",;\t", key=lambda one: _cells(lines.first, one, how.text))
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        header = next(rows, [])
        if header and how.text not in header:
            raise DataError(f"{name} has no column {how.text!r}; it has {', '.join(header)[:200]}: set text:")
        place = header.index(how.text) if header else 0
        for number in itertools.count(2):
            lines.open = False
            try:
                cells = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                while lines.open and next(lines, None) is not None:
                    pass  # what is left of its field would pass for rows
                why = "huge" if "field larger" in str(error) else f"row damaged: {error}"[:120]
                yield Found(number, None, 0, why)
                continue
            yield checked(cells[place] if place < len(cells) else None, number, how)
    except csv.Error as error:
        raise EOFError(f"header: {error}") from None
    finally:
        text.detach()


class _Lines:
    """Lines of a CSV file; `open` tells whether those since it was last set to False leave a quotation open."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.first, self.open = lines, "", False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, self.first = self.first or next(self._lines), ""
        self.open ^= line.count('"') % 2 == 1
        return line


def _cells(line: str, delimiter: str, wanted: str) -> tuple[bool, int]:
    """Whether a header parted so has the wanted cell, and how many it has."""
    cells = next(csv.reader([line], delimiter=delimiter), [])
    return wanted in cells, len(cells)


def _warc(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError:
        raise DataError("WARC needs fastwarc: install pando-fm[corpus]") from None
    records = ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=False)
    for number, record in enumerate(records, 1):
        page, size = str(record.headers.get("WARC-Target-URI", "")), record.content_length
        if size > 2 * how.most:
            yield Found(number, None, size, "huge", page)
            continue
        kind, data = _answer(record, how.most)
        if kind and "html" not in kind and "text" not in kind:
            yield Found(number, None, size, "not a page", page)
        elif data is None or len(data) > how.most:
            yield Found(number, None, size, "page damaged" if data is None else "huge", page)
        else:
            found = checked(html_text(data), number, how, page)
            yield Found(number, found.text, len(data), found.problem, page)


def _answer(record: Any, most: int) -> tuple[str, bytes | None]:
    """Content type and body (at most one byte over `most`) of a server's answer, unpacked as its headers say; as it
    stands where that fails and it is text all the same, as archives keep some; else None."""
    from fastwarc.warc import WarcRecord

    raw, kind, data = record.reader.read(record.content_length), "", b""
    if len(raw) < record.content_length:  # the file ends here
        return kind, None
    for decode in ("all", "none"):
        copy = WarcRecord()  # of its own: where unpacking fails, the file's other records are still read
        copy.set_bytes_content(raw)
        copy.is_http = record.is_http
        try:
            copy.parse_http(auto_decode=decode)
            kind = copy.http_content_type or ""
            data = copy.reader.read(most + 1)
        except OSError:
            continue
        return kind, None if decode == "none" and looks_binary(data) else data
    return kind, None


def _chat(file: BinaryIO, name: str, how: How) -> Iterator[Found]:
    if format_of(name)[0] == "parquet":
        rows: Iterator[Found | tuple[int, Any]] = iter(enumerate(_parquet_rows(file, name, how), 1))
    else:
        rows = _json_rows(file, how)
    for row in rows:
        if isinstance(row, Found):
            yield row
            continue
        number, turns = row
        text, problem = chat_text(turns)
        yield checked(text, number, how) if problem is None else Found(number, None, 0, problem)


_READERS: dict[str, Callable[[BinaryIO, str, How], Iterator[Found]]] = {
    "text": _whole,
    "markdown": _whole,
    "code": _whole,
    "html": _html,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "csv": _csv,
    "warc": _warc,
    "chat": _chat,
}
