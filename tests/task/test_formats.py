"""Reading rows: every format says the same, and whatever is broken is a line or one error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pando.errors import DataError
from pando.task.formats import MAX_LINE, BadRow, Row, iter_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.fixed_dictionaries({"a": TEXT, "b c": TEXT}), min_size=1, max_size=6)
ANYWHERE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    import pyarrow

    packed: bytes = pyarrow.compress(data, codec="zstd", asbytes=True)
    return packed


FORMATS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    ".jsonl": as_jsonl,
    ".csv": as_csv,
    ".tsv": lambda rows: as_csv(rows, "\t"),
    ".parquet": as_parquet,
}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path) -> list[Row | BadRow]:
    return list(iter_rows(path))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("suffix", FORMATS)
@ANYWHERE
@given(rows=ROWS)
def test_every_format_gives_the_rows_back(
    tmp_path: Path, suffix: str, packing: str, rows: list[dict[str, str]]
) -> None:
    path = write(tmp_path / f"rows{suffix}{packing}", PACKINGS[packing](FORMATS[suffix](rows)))
    assert [row.values for row in read(path) if isinstance(row, Row)] == rows
    if suffix in (".jsonl", ".parquet"):
        assert [row.line for row in read(path)] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("packing", PACKINGS)
@ANYWHERE
@given(data=st.data())
def test_damage_is_bad_rows_or_one_error(tmp_path: Path, suffix: str, packing: str, data: st.DataObject) -> None:
    whole = bytearray(PACKINGS[packing](FORMATS[suffix]([{"a": "some text, and more", "b c": "é"}] * 20)))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    for place in data.draw(st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=3 if whole else 0)):
        whole[place] = data.draw(st.integers(0, 255))
    path = write(tmp_path / f"rows{suffix}{packing}", bytes(whole))
    try:
        assert all(isinstance(row, (Row, BadRow)) for row in iter_rows(path))
    except DataError as error:
        assert str(path) in str(error)


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b"", b"[1]", b'{"a": NaN}', b'{"a": "\xff"}', b'{"a"', b"[" * 100_000, b'{"a": 2}']
    rows = read(write(tmp_path / "r.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(lines)))
    assert [row.line for row in rows] == [1, 3, 4, 5, 6, 7, 8]
    assert [row.why for row in rows if isinstance(row, BadRow)] == [
        "not a JSON object",
        "not JSON: NaN is no JSON number",
        "byte 0xff at 8 is not UTF-8; save the file as UTF-8",
        "not JSON: Expecting ':' delimiter at column 5",
        "not JSON: nested too deeply",
    ]
    assert [row.values for row in rows if isinstance(row, Row)] == [{"a": 1}, {"a": 2}]


def test_a_line_beyond_all_bounds_is_passed_over(tmp_path: Path) -> None:
    huge = b'{"a": "' + b"x" * (2 * MAX_LINE) + b'"}\n'
    rows = read(write(tmp_path / "r.jsonl.gz", gzip.compress(b"{}\n" + huge + b"{}\n", 1)))
    assert rows == [Row(1, {}), BadRow(2, f"the line is over {MAX_LINE:,} bytes"), Row(3, {})]
    with pytest.raises(DataError, match=r"r\.csv:2: the line is over"):
        read(write(tmp_path / "r.csv", b"a\n" + huge))


def test_csv_lines_quotes_and_cells(tmp_path: Path) -> None:
    text = '\ufefftext, label ,,\n"two\nlines, ""quoted""",a,,\n\nshort,b\n\xe9,c,,\n'
    rows = read(write(tmp_path / "r.csv", text.encode() + b"\xff,d,,\n" + b'"open,e,,\n'))
    assert rows == [
        Row(2, {"text": 'two\nlines, "quoted"', "label": "a"}),
        BadRow(5, "has 2 cells where the header has 4"),
        Row(6, {"text": "é", "label": "c"}),
        BadRow(7, "holds bytes that are not UTF-8; save the file as UTF-8"),
        BadRow(8, "not CSV: unexpected end of data; is a quotation mark left open?"),
    ]


@pytest.mark.parametrize(("delimiter", "suffix"), [(",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv")])
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str, suffix: str) -> None:
    lines = [["text", "label"], ["a,b;c", "x"]] if delimiter == "\t" else [["text", "label"], ["a b", "x"]]
    path = write(tmp_path / f"r.{suffix}", "\n".join(delimiter.join(line) for line in lines))
    assert read(path) == [Row(2, dict(zip(*lines, strict=True)))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", b"[]", "rows are read from .jsonl"),
        ("r", b"", "rows are read from .jsonl"),
        (".gz", b"", "rows are read from .jsonl"),
        ("r.csv", b"", "the header, names no field"),
        ("r.csv", b"a,b\r1,2\r", "the header is not CSV: new-line character"),
        ("r.csv", b"a,b,a\n1,2,3\n", r"r\.csv:1: the first line, the header, names a twice"),
        ("r.csv", b",,\n", "names no field"),
        ("r.csv", b"\xe9,b\n", "the header is not UTF-8"),
        ("r.csv", b'"a,b\n', "the header is not CSV"),
        ("r.csv", "a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("r.jsonl", "{}\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("r.jsonl.gz", b"{}\n", "damaged gzip data"),
        ("r.jsonl.gz", gzip.compress(b"{}\n" * 100, mtime=0)[:-9], "damaged gzip data"),
        ("r.jsonl.zst", b"{}\n", "damaged zstd data"),
        ("r.jsonl.zst", zstd(b"".join(b"%d\n" % zlib.crc32(b"%d" % i) for i in range(99)))[:-9], "damaged zstd data"),
        ("r.parquet", b"PAR1 no PAR1", "damaged Parquet"),
        ("r.parquet", b"", "damaged Parquet"),
    ],
)
def test_files_that_cannot_be_read_at_all(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path / "folder.jsonl")


@pytest.mark.parametrize(("suffix", "pack"), [("gz", lambda d: gzip.compress(d, 9)), ("zst", zstd)])
def test_a_bomb_is_refused(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], monkeypatch: Any) -> None:
    monkeypatch.setattr("pando.task.formats._GROWTH_FROM", 2**20)
    path = write(tmp_path / f"r.jsonl.{suffix}", pack(b"\n" * 2**24))
    with pytest.raises(DataError, match="grows over 300 times"):
        read(path)


def test_a_row_is_handed_on_before_the_next_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", b'{"a": 1}\n' * 200_000)
    first = next(iter_rows(path))
    assert first == Row(1, {"a": 1})
