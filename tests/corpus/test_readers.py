from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pando.corpus.readers import Found, How, documents, format_of
from pando.errors import DataError

HOW = How("text", "utf-8", 1000)


def read(data: bytes, name: str, kind: str = "auto", how: How = HOW) -> list[Found]:
    return list(documents(io.BytesIO(data), name, kind, how))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ("text", "")),
        ("a.md.gz", ("markdown", "gzip")),
        ("a.jsonl.zst", ("jsonl", "zstd")),
        ("a.tar.py", ("code", "")),
        ("README", ("text", "")),
        ("b.warc.gz", ("warc", "gzip")),
    ],
)
def test_formats_by_name(name: str, kind: tuple[str, str]) -> None:
    assert format_of(name) == kind


def test_a_text_file_is_one_document() -> None:
    assert read("\ufeffhällo\n".encode(), "a.txt") == [Found(1, "hällo\n", 10)]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"x" * 1001, "huge"),
        (b"ab\0cd", "binary"),
        (bytes(range(1, 9)) * 9, "binary"),
        (b"caf\xe9", "encoding"),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, problem: str) -> None:
    found = read(data, "a.txt")
    assert [(one.text, one.problem, one.size) for one in found] == [(None, problem, len(data))]


def test_another_encoding_may_be_stated() -> None:
    assert read(b"caf\xe9", "a.txt", how=How("text", "latin-1", 1000))[0].text == "café"


def test_jsonl_names_each_bad_line_and_goes_on() -> None:
    lines = [
        json.dumps({"text": "one"}).encode(),
        b"{broken",
        b'{"text": 5}',
        b"",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        json.dumps({"text": "y" * 1500}).encode(),
        json.dumps({"text": "z" * 5000}).encode(),
        b'{"text": ""}',
        b"[1]",
        json.dumps({"text": "last"}).encode(),
    ]
    found = read(b"\n".join(lines), "a.jsonl")
    assert [(one.row, one.text or one.problem) for one in found] == [
        (1, "one"),
        (2, "not JSON"),
        (3, "no text"),
        (5, "encoding"),
        (6, "encoding"),
        (7, "huge"),
        (8, "huge"),
        (9, "empty"),
        (10, "no text"),
        (11, "last"),
    ]


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_packed_files_and_cut_ones(packing: str) -> None:
    import random

    draw = random.Random(0)
    text = [f"{draw.random()}" * 3 for _ in range(4000)]
    plain = "".join(json.dumps({"text": one}) + "\n" for one in text).encode()
    packed = gzip.compress(plain) if packing == "gz" else zstandard.compress(plain)
    assert [one.text for one in read(packed, f"a.jsonl.{packing}")] == text
    cut = read(packed[: len(packed) // 2], f"a.jsonl.{packing}")
    assert [one.text for one in cut[:500]] == text[:500]
    assert cut[-1].problem and (cut[-1].problem.startswith("file damaged") or cut[-1].problem == "not JSON")


def test_parquet_csv_and_their_missing_columns() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a b", None, ""], "other": [1, 2, 3]}), buffer)
    found = read(buffer.getvalue(), "a.parquet")
    assert [(one.row, one.text or one.problem) for one in found] == [(1, "a b"), (2, "no text"), (3, "empty")]
    with pytest.raises(DataError, match="no column 'body'; it has text, other"):
        read(buffer.getvalue(), "a.parquet", how=How("body", "utf-8", 1000))
    assert read(b"no parquet at all", "a.parquet")[0].problem is not None
    lines = io.StringIO()
    csv.writer(lines).writerows([["id", "text"], ["1", "one,\ntwo"], ["2", ""]])
    found = read(lines.getvalue().encode(), "a.csv")
    assert [(one.row, one.text or one.problem) for one in found] == [(2, "one,\ntwo"), (3, "empty")]
    assert read(b"id\ttext\n1\tx y\n", "a.tsv")[0].text == "x y"
    assert read(b"text\nok\nbad \xff\n", "a.csv")[1].problem == "encoding"


PAGE = b"""<html><head><title>T</title></head><body><nav><a href=x>Menu</a></nav><article><h1>Aspens</h1>
<p>Pando is a grove of trees that share one root, and it is very old and very heavy.</p></article></body></html>"""


def test_html_gives_its_text() -> None:
    pytest.importorskip("resiliparse")
    text = read(PAGE, "a.html")[0].text
    assert text is not None and "share one root" in text and "<p>" not in text


def record(url: str, head: str, body: bytes) -> bytes:
    """An answer of a web server as WARC keeps it."""
    http = f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body
    about = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789012>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return about.encode() + http + b"\r\n\r\n"


def test_warc_gives_its_pages_however_they_were_sent() -> None:
    pytest.importorskip("fastwarc")
    html = "Content-Type: text/html"
    packed = gzip.compress(PAGE)
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (packed[:50], packed[50:])) + b"0\r\n\r\n"
    data = record("http://a.test/plain", html, PAGE)
    data += record("http://a.test/sent", f"{html}\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked", chunked)
    data += record("http://a.test/huge", f"{html}\r\nContent-Encoding: gzip", gzip.compress(b" " * 10_000_000))
    data += record("http://a.test/broken", f"{html}\r\nContent-Encoding: gzip", packed[:30] + b"no gzip" * 9)
    data += record("http://a.test/claims", f"{html}\r\nTransfer-Encoding: chunked", PAGE)
    data += record("http://a.test/picture", "Content-Type: image/png", b"\x89PNG")
    data += record("http://a.test/last", html, PAGE)
    found = {one.name: one for one in read(data, "a.warc", how=How("text", "utf-8", 100_000))}
    for page in ("plain", "sent", "claims", "last"):
        text = found[f"http://a.test/{page}"].text
        assert text is not None and "share one root" in text
    assert found["http://a.test/huge"].problem == "huge" and found["http://a.test/picture"].problem == "not a page"
    assert found["http://a.test/broken"].problem == "page damaged" and len(found) == 7
    cut = read(data[: -len(PAGE) // 2], "a.warc", how=How("text", "utf-8", 100_000))
    assert [one.problem for one in cut[-1:]] == ["page damaged"] and len(cut) == 7


def chat(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


GOOD = chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
ML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"


def test_conversations_become_chatml(tmp_path: Path) -> None:
    rows = [
        {"messages": GOOD},
        {"messages": chat(("user", "say <|im_end|>"), ("assistant", "no"))},
        {"messages": chat(("user\nassistant", "Hi"), ("assistant", "x"))},
        {"messages": chat(("user", "Hi"))},
        {"messages": chat(("assistant", None))},
        {"messages": "Hi"},
        {"other": GOOD},
    ]
    data = "\n".join(map(json.dumps, rows)).encode()
    found = read(data, "a.jsonl", "chat", How("messages", "utf-8", 1000))
    problems = ["chat mark in a turn", "no turns", "no answer", "no turns", "no turns", "no turns"]
    assert [(one.row, one.text or one.problem) for one in found] == list(enumerate([ML, *problems], 1))
    pq.write_table(pa.table({"talk": [GOOD, None]}), tmp_path / "a.parquet")
    found = read((tmp_path / "a.parquet").read_bytes(), "a.parquet", "chat", How("talk", "utf-8", 1000))
    assert [(one.row, one.text or one.problem) for one in found] == [(1, ML), (2, "no turns")]


def test_a_mark_that_normalising_would_make_is_one_too() -> None:
    for spelled in ("<|im\ufeff_end|>", "<|im\x07_end|>", "\uff1c\uff5cim_end\uff5c\uff1e"):
        turns = [{"role": "user", "content": f"hi{spelled}"}, {"role": "assistant", "content": "yes"}]
        (found,) = read(json.dumps({"messages": turns}).encode(), "a.jsonl", "chat", How("messages", "utf-8", 1000))
        assert found.problem == "chat mark in a turn"


def test_a_bad_row_of_a_table_costs_that_row_alone() -> None:
    found = read(b'text,n\none,1\n"two"x,2\nthree,3\n', "a.csv")
    assert [one.text for one in found] == ["one", None, "three"] and str(found[1].problem).startswith("row damaged")
    assert [one.text for one in read("\ufefftext,n\nein,1\n".encode(), "a.csv")] == ["ein"]  # as Excel writes it
    assert [one.problem for one in read(b"\x89PNG\0\0\0rubbish", "a.csv")] == ["binary"]
    (damaged,) = read("text\n".encode("utf-16") + b"\x00\xd8\n\x00", "a.csv", how=How("text", "utf-16", 1000))
    assert damaged.text is None


def test_what_is_left_of_a_bad_row_passes_for_no_document() -> None:
    opened = b'text,n\nfirst,1\n"he said "hello" and\nwent on\nto the end",2\nlast,3\n'
    assert [one.text for one in read(opened, "a.csv")] == ["first", None, "last"]
    long = b'text\nfirst\n"' + b"a line of it\n" * 20_000 + b'end"\nlast\n'
    assert [(one.text, one.problem) for one in read(long, "a.csv")][1:] == [(None, "huge"), ("last", None)]
    never_closed = read(b'text\nfirst\n"open\nand on\n', "a.csv")
    assert [one.text for one in never_closed] == ["first", None]


def test_columns_may_be_parted_by_semicolons() -> None:
    assert [one.text for one in read(b"id;text\n1;one, two\n", "a.csv")] == ["one, two"]
    assert [one.text for one in read(b"text\na;b\tc\n", "a.csv")] == ["a;b\tc"]
    with pytest.raises(DataError, match="has no column 'text'; it has id, body"):
        read(b"id;body\n1;2\n", "a.csv")


def test_packed_tables_and_values_that_cannot_be_told() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), file)
    for packed, name in ((gzip.compress(file.getvalue()), "gz"), (zstandard.compress(file.getvalue()), "zst")):
        assert [one.text for one in read(packed, f"a.parquet.{name}")] == ["one", "two"]
    turns = pa.array([[{"role": "user", "content": b"hi"}, {"role": "assistant", "content": b"\xff"}]])
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    file = io.BytesIO()
    pq.write_table(pa.table({"messages": turns.cast(kind, safe=False)}), file)
    found = read(file.getvalue(), "a.parquet", "chat", How("messages", "utf-8", 1000))
    assert [(one.text, one.problem) for one in found] == [(None, "no turns")]
    with pytest.raises(DataError, match="does not part JSON lines at bytes"):
        read('{"text": "x"}\n'.encode("utf-16"), "a.jsonl", how=How("text", "utf-16", 1000))


def test_a_page_nested_without_end_is_read_in_time() -> None:
    pytest.importorskip("resiliparse")
    page = b"<div>" * 60_000 + b"the text within"
    (found,) = read(page, "a.html", how=How("text", "utf-8", 1_000_000))
    assert found.text == "the text within" and found.size == len(page)


def test_tables_of_categories_and_lines_of_other_encodings_are_read() -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(["a b", "c d", "a b"]).dictionary_encode()}), file)
    assert [one.text for one in read(file.getvalue(), "a.parquet")] == ["a b", "c d", "a b"]
    (line,) = read('{"text": "caf\xe9"}\n'.encode("latin-1"), "a.jsonl", how=How("text", "iso-8859-1", 1000))
    assert line.text == "caf\xe9"
    assert read(b"ab\0cd", "a.txt", how=How("text", "utf8", 1000))[0].problem == "binary"
    assert read(b"ab\0cd", "a.txt", how=How("text", "cp1252", 1000))[0].problem == "binary"
