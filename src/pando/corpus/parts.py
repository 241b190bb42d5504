"""Parts: the pieces of a corpus that one task reads and writes, kept as Parquet under the hash of what made them.

A part holds the documents of one source, about 8 MB of text. A stage writes, beside the text it read, a table with as
many rows as the part: its scores, and the new text if it changes it. A file is there whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pando.files import atomic_write, content_hash

PART_BYTES = 8_000_000  # of text; numpy's working arrays of a part take about twenty times as much
READ_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # hash of source, file and row, 32 hex digits
        ("file", pa.string()),
        ("row", pa.int64()),  # line or record, from 1; 1 where the file is the document
        ("bytes", pa.int64()),  # of the document as found
        ("problem", pa.string()),  # why it cannot be used; null where it can
        ("text", pa.large_string()),
    ]
)


def key_of(*parts: Any) -> str:
    """A short name for what made a file: the first 24 hex digits of the hash of its inputs and settings."""
    return content_hash(list(parts)).removeprefix("sha256:")[:24]


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table as Parquet, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    # no dictionaries: texts hardly ever repeat, and of the rest the compression finds what does
    settings = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
    pq.write_table(table, buffer, row_group_size=1 << 20, **settings)
    atomic_write(path, buffer.getvalue())


def read_table(path: Path | str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads such a table, or some of its columns, on the calling thread."""
    return pq.read_table(path, columns=columns, use_threads=False, memory_map=True)


def text_of(path: Path | str) -> pa.Array:
    """The texts of a part, [rows] large strings."""
    column = read_table(path, ["text"]).column("text").combine_chunks()
    return column.cast(pa.large_string()) if column.type != pa.large_string() else column


def columns_of(paths: Sequence[Path | str], names: Sequence[str]) -> pa.Table:
    """Columns of many parts end to end; of a part that has no file (None) the rows must be filled by the caller."""
    return pa.concat_tables([read_table(path, names) for path in paths])


def table_of(columns: Mapping[str, Any]) -> pa.Table:
    """A table from arrays by name."""
    return pa.table(dict(columns))
