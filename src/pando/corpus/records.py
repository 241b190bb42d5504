"""The decision ledger: one row for each document that was found, kept or not, and questions that are asked of it.

`ledger.parquet` has a row group for each part; a document's number is the number of its row. `<shard>.docs` holds the
number of each document of a shard, so that every token leads back to a row.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pando.corpus.config import Config
from pando.corpus.decide import Decisions, Part
from pando.corpus.parts import read_table
from pando.corpus.thresholds import RULES
from pando.corpus.words import I64
from pando.errors import DataError
from pando.files import check_format

LEDGER = "ledger.parquet"
_PII = ("email", "ip", "phone", "secret")
_SCORES = {
    "language": ["language", "language_score"],
    "rules": list(dict.fromkeys(rule.score for rule in RULES.values())),
    "quality": ["quality"],
    "pii": [f"pii_{kind}" for kind in _PII],
    "decontaminate": ["contamination", "contamination_item"],
}
_TEXT = ("language", "contamination_item")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("bytes", pa.int64()),
        ("kept", pa.bool_()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("score", pa.float32()),
        ("threshold", pa.float32()),
        ("duplicate_of", pa.string()),
        ("detail", pa.string()),
        ("tokens", pa.int64()),
        ("content", pa.binary(16)),
        ("text_bytes", pa.int64()),
        *(
            (name, pa.string() if name in _TEXT else pa.int32() if name.startswith("pii_") else pa.float32())
            for names in _SCORES.values()
            for name in names
        ),
    ]
)


def write_ledger(path: Path, config: Config, parts: Sequence[Part], decisions: Decisions, tokens: I64) -> None:
    """Writes the ledger, part by part; its folder is written aside and renamed by the caller."""
    repeated = np.unique(decisions.other[decisions.other >= 0])
    named = _ids(parts, repeated)
    with pq.ParquetWriter(
        path, SCHEMA, compression="zstd", use_dictionary=["source", "file", "stage", "rule"]
    ) as writer:
        start = 0
        for part in parts:
            rows = slice(start, start + part.rows)
            writer.write_table(_rows(config, part, decisions, tokens, rows, named), row_group_size=max(1, part.rows))
            start += part.rows


def _rows(
    config: Config, part: Part, decisions: Decisions, tokens: I64, rows: slice, named: dict[int, str]
) -> pa.Table:
    read = read_table(part.read, ["id", "file", "row", "bytes"])
    rule = decisions.rule[rows].tolist()
    kept = decisions.kept[rows]
    columns: dict[str, Any] = {name: read.column(name) for name in read.column_names}
    columns["source"] = pa.repeat(pa.scalar(config.sources[part.source].name), part.rows)
    columns["kept"] = pa.array(kept)
    columns["stage"] = pa.array([decisions.names[one][0] if one >= 0 else None for one in rule], pa.string())
    columns["rule"] = pa.array([decisions.names[one][1] if one >= 0 else None for one in rule], pa.string())
    for name, values in (("score", decisions.score[rows]), ("threshold", decisions.limit[rows])):
        columns[name] = pa.array(values, pa.float32(), from_pandas=True)
    columns["duplicate_of"] = pa.array([named.get(other) for other in decisions.other[rows].tolist()], pa.string())
    columns["detail"] = pa.array([decisions.detail.get(place) for place in range(rows.start, rows.stop)], pa.string())
    columns["tokens"] = pa.array(tokens[rows], mask=~kept)
    final = read_table(part.files["final"])
    columns |= {name: final.column(name) for name in ("content", "text_bytes")}
    for stage, names in _SCORES.items():
        there = read_table(part.files[stage]) if stage in part.files else None
        for name in names:
            if there is not None and name in there.column_names:
                columns[name] = there.column(name)
            else:
                columns[name] = pa.nulls(part.rows, SCHEMA.field(name).type)
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


def _ids(parts: Sequence[Part], wanted: I64) -> dict[int, str]:
    found: dict[int, str] = {}
    start = 0
    for part in parts:
        mine = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + part.rows)]
        if len(mine):
            ids = read_table(part.read, ["id"]).column("id").take(pa.array(mine - start)).to_pylist()
            found.update(zip(mine.tolist(), ids, strict=True))
        start += part.rows
    return found


def open_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus.

    Raises:
        DataError: the folder holds none, or it is damaged.
    """
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no corpus (manifest.json is missing); make one with: pando corpus build"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); build the corpus again") from None
    check_format(str(path), found.get("format_version") if isinstance(found, dict) else None, 1)
    if missing := {"sources", "splits", "dtype", "tokenizer", "hash"} - found.keys():
        raise DataError(f"{path} is damaged ({', '.join(sorted(missing))} missing); build the corpus again")
    return dict(found)


def tokens_of(folder: Path, ids: pa.Array) -> I64:
    """[N] how many tokens documents have by a corpus' ledger, 0 where it does not know them.

    Raises:
        DataError: the ledger is missing or damaged.
    """
    with _ledger(folder) as ledger:
        known = ledger.read(columns=["id", "tokens"])
    place = pc.index_in(ids, known.column("id").combine_chunks())
    found: I64 = known.column("tokens").take(place).fill_null(0).to_numpy()
    return found


def why(folder: Path, id: str) -> dict[str, Any]:
    """What became of a document: its row of the ledger without what is not known of it.

    Args:
        id: the document's id, or enough of its beginning to name one.

    Raises:
        DataError: there is no such document, or several.
    """
    with _ledger(folder) as ledger:
        ids = ledger.read(columns=["id"]).column("id")
        found = np.flatnonzero(pc.starts_with(ids, id.strip().lower()).to_numpy()) if id.strip() else np.zeros(0, int)
        if len(found) != 1:
            many = f"{len(found)} documents begin so; give more of it" if len(found) else "ids are in ledger.parquet"
            raise DataError(f"{folder}: no one document has the id {id!r}: {many}")
        return row_of(ledger, int(found[0]))


def row_of(ledger: pq.ParquetFile, number: int) -> dict[str, Any]:
    """A row of the ledger by its number, without empty columns."""
    for group in range(ledger.num_row_groups):
        rows = ledger.metadata.row_group(group).num_rows
        if number < rows:
            row = ledger.read_row_group(group).slice(number, 1).to_pylist()[0]
            row["content"] = row["content"].hex()
            return {"number": number, **{key: value for key, value in row.items() if value is not None}}
        number -= rows
    raise DataError("the ledger has no such row: it belongs to another corpus")


def trace(folder: Path, shard: str, offset: int) -> dict[str, Any]:
    """Where a token came from.

    Args:
        shard: "train-00000", or the name of its .bin.
        offset: of the token in the shard, from 0.

    Returns:
        The document's row of the ledger under "document", the place of the token in it ("token"), and the bytes of
        the cleaned text that it stands for ("bytes": first and end; for the token that ends a document both are the
        text's end), with the text around. Of a tokenizer that changes what it reads (white space, case) the text is the
        one that it decodes to.

    Raises:
        DataError: no such shard or token.
    """
    manifest = open_manifest(folder)
    name = Path(shard).name.removesuffix(".bin")
    entries = [entry for split in manifest["splits"].values() for entry in split if entry["file"] == f"{name}.bin"]
    if not entries:
        names = [entry["file"].removesuffix(".bin") for split in manifest["splits"].values() for entry in split]
        raise DataError(f"{folder} has no shard {name}; it has {', '.join(names[:6])}")
    if not 0 <= offset < entries[0]["tokens"]:
        raise DataError(f"{name} has no token {offset}: it has {entries[0]['tokens']}, counted from 0")
    index = np.fromfile(folder / entries[0]["index"], "<u8").reshape(-1, 3)
    place = int(np.searchsorted(index[:, 0], offset, "right"))
    number = int(np.fromfile(folder / entries[0]["lineage"], "<u8")[place])
    first = int(index[place - 1, 0]) if place else 0
    data = np.memmap(folder / entries[0]["file"], "<u2" if manifest["dtype"] == "uint16" else "<u4", "r")
    ids = data[first : int(index[place, 0])].astype(np.int64).tolist()
    begin, end, whole = _spelled(folder / manifest["tokenizer"]["file"], ids[:-1], offset - first)
    around = whole[max(0, begin - 60) : begin], whole[begin:end], whole[end : end + 60]
    with _ledger(folder) as ledger:
        document = row_of(ledger, number)
    return {
        "shard": name,
        "offset": offset,
        "token": offset - first,
        "bytes": [begin, end],
        "text": [part.decode(errors="replace") for part in around],
        "document": document,
    }


def _spelled(path: Path, ids: list[int], place: int) -> tuple[int, int, bytes]:
    """(first byte, end, all bytes): what the token at `place` stands for, in the text of all."""
    from pando.corpus.tokens import load_tokenizer

    made = load_tokenizer(path)
    if '"ByteLevel"' in json.dumps(json.loads(made.to_str())["decoder"]):
        spell = speller(made)
        pieces = [*map(spell, ids), b""]
        begin = sum(map(len, pieces[:place]))
        return begin, begin + len(pieces[place]), b"".join(pieces)
    # how such a token is spelled hangs on those before it
    begin, end, whole = (made.decode(ids[:up], skip_special_tokens=False).encode() for up in (place, place + 1, None))
    return len(begin), len(end), whole


def speller(made: Any) -> Callable[[int], bytes]:
    """A function from a token to its bytes, of a byte-level tokenizer."""
    added = {number: token.content for number, token in made.get_added_tokens_decoder().items()}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + place): byte for place, byte in enumerate(b for b in range(256) if b not in printable)}

    def spell(number: int) -> bytes:
        if number in added:
            return str(added[number]).encode()
        return bytes(table[one] for one in made.id_to_token(number) or "")

    return spell


def counts(folder: Path) -> dict[str, Any]:
    """What each stage and rule took, by source, from the ledger; examples of what each rule dropped.

    Returns:
        "sources" (of the manifest), "dropped": (stage, rule) -> {source: documents}, with bytes; "examples": up to
        three ids a rule; "masked": personal data by kind; "read" and "kept" documents.
    """
    manifest = open_manifest(folder)
    wanted = ["id", "source", "file", "row", "bytes", "kept", "stage", "rule", "detail", *_SCORES["pii"]]
    dropped: dict[tuple[str, str], dict[str, list[int]]] = {}
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    masked = dict.fromkeys(_PII, 0)
    with _ledger(folder) as ledger:
        read = ledger.metadata.num_rows
        for group in range(ledger.num_row_groups):
            table = ledger.read_row_group(group, columns=wanted)
            for kind in _PII:
                masked[kind] += pc.sum(table.column(f"pii_{kind}").filter(table.column("kept"))).as_py() or 0
            gone = table.filter(pc.invert(table.column("kept")))
            for row in gone.select(["source", "stage", "rule", "bytes", "id", "file", "row", "detail"]).to_pylist():
                key = row["stage"], row["rule"]
                sums = dropped.setdefault(key, {}).setdefault(row["source"], [0, 0])
                sums[0] += 1
                sums[1] += row["bytes"]
                if len(examples.setdefault(key, [])) < 3:
                    examples[key].append({name: row[name] for name in ("id", "file", "row", "detail")})
    return {
        "manifest": manifest,
        "dropped": dropped,
        "examples": examples,
        "masked": masked,
        "read": read,
        "kept": sum(source["documents"] for source in manifest["sources"]),
    }


@contextlib.contextmanager
def _ledger(folder: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(folder / LEDGER, memory_map=True) as ledger:
            yield ledger
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder / LEDGER} cannot be read ({error}); build the corpus again") from None


def difference(before: Decisions, after: Decisions, source: I64, tokens: I64, size: I64) -> list[dict[str, Any]]:
    """What another decision would keep, by source: documents and tokens; tokens of documents that were never encoded
    are reckoned from their bytes.

    Args:
        source, tokens, size: [N] number of the source; tokens, 0 where not encoded; bytes of the text.
    """
    known = before.kept & (tokens > 0)
    found = []
    for number in range(int(source.max(initial=-1)) + 1):
        mine = source == number
        a_byte = tokens[mine & known].sum() / max(1, size[mine & known].sum())
        reckoned: npt.NDArray[np.float64] = np.where(tokens > 0, tokens, size * a_byte)
        row: dict[str, Any] = {"source": number}
        for name, one in (("before", before), ("after", after)):
            row[f"documents_{name}"] = int((mine & one.kept).sum())
            row[f"tokens_{name}"] = round(float(reckoned[mine & one.kept].sum()))
        row["gained"] = int((mine & ~before.kept & after.kept).sum())
        row["lost"] = int((mine & before.kept & ~after.kept).sum())
        found.append(row)
    return found
