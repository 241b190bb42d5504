"""Token shards on disk, as `pando corpus build` writes them: documents end to end, an index, a JSON manifest.

    DIR/manifest.json      what was made from what; names and hashes of the files
    DIR/train-00000.bin    little-endian tokens of all documents, each ended by the token `end`
    DIR/train-00000.idx    little-endian uint64 [documents, 3]: where each ends in the .bin (exclusive, in tokens),
                           UTF-8 bytes of its text, number of its source
    DIR/tokenizer.json     the tokenizer, as a Hugging Face folder has it

Numpy alone reads them; files are mapped into memory and checked when they are first used.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pando.errors import DataError
from pando.files import check_format, content_hash

MANIFEST = "manifest.json"
FORMAT = 1
_DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_MEND = "build the corpus again, or copy the folder anew"


class Document(NamedTuple):
    """One document: tokens int32 [n], the last of which is `end`; number of its source; UTF-8 bytes of its text."""

    tokens: NDArray[np.int32]
    source: int
    bytes: int


@dataclass(frozen=True)
class Source:
    """Where documents come from: its number is its place in the manifest's list."""

    name: str
    licence: str
    documents: int
    tokens: int
    bytes: int


class Shards:
    """A folder of token shards; `open_shards` makes it.

    Attributes:
        folder: where it is.
        manifest: the whole of manifest.json.
        hash: names the content; two corpora of one hash are the same corpus.
        vocab_size: tokens of the tokenizer.
        end: the token that ends every document.
        sources: what the documents came from.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.hash = _text(folder, manifest, "hash")
        self.vocab_size, self.end = _count(folder, manifest, "vocab_size"), _count(folder, manifest, "end")
        self.sources = [_source(folder, entry) for entry in _entries(folder, manifest, "sources")]
        dtype = _text(folder, manifest, "dtype")
        if dtype not in _DTYPES:
            raise DataError(f"{folder / MANIFEST}: dtype {dtype!r} is none of {', '.join(_DTYPES)}; {_MEND}")
        splits = manifest.get("splits")
        if not isinstance(splits, dict):
            raise DataError(f"{folder / MANIFEST}: splits is missing; {_MEND}")
        self._splits = {
            name: Documents([_Shard(folder, entry, dtype, self) for entry in _entries(folder, splits, name)])
            for name in splits
        }

    @property
    def tokenizer_file(self) -> Path:
        """tokenizer.json, checked against its hash.

        Raises:
            DataError: it is missing or changed.
        """
        entry = self.manifest.get("tokenizer")
        if not isinstance(entry, dict):
            raise DataError(f"{self.folder / MANIFEST}: tokenizer is missing; {_MEND}")
        path = self.folder / _text(self.folder, entry, "file")
        _check_hash(path, _text(self.folder, entry, "hash"))
        return path

    def documents(self, split: str) -> Documents:
        """The documents of "train" or "validation", in the order of the files; none if there is no such split."""
        return self._splits.get(split, Documents([]))


def open_shards(folder: str | Path) -> Shards:
    """Opens a folder of token shards; only the manifest is read now.

    Raises:
        DataError: there is no corpus, or its manifest is damaged; names the file and the field.
        FormatVersionError: a newer Pando wrote it.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no corpus ({MANIFEST} is missing); make one with: pando corpus build"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}); {_MEND}") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path} is damaged (no JSON object); {_MEND}")
    check_format(str(path), manifest.get("format_version"), FORMAT)
    if content_hash({key: value for key, value in manifest.items() if key != "hash"}) != manifest.get("hash"):
        raise DataError(f"{path} has been changed (its own hash differs); {_MEND}")
    return Shards(folder, manifest)


class Documents(Sequence[Document]):
    """The documents of one split. Reading one costs microseconds; any number of readers may share it."""

    def __init__(self, shards: list[_Shard]) -> None:
        self._shards = shards
        self._starts = [0, *accumulate(shard.documents for shard in shards)]

    @property
    def tokens(self) -> int:
        """Tokens of all documents, their ends included."""
        return sum(shard.tokens for shard in self._shards)

    def sources(self) -> set[int]:
        """Numbers of the sources that they are from.

        Raises:
            DataError: as for a document.
        """
        return {source for shard in self._shards for source in shard.sources()}

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        """Document `index`, or several.

        Raises:
            DataError: the shard that holds it is missing, changed or damaged; names the file.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        shard = bisect_right(self._starts, index) - 1
        return self._shards[shard].document(index - self._starts[shard])

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))


class _Shard:
    """One pair of .bin and .idx, mapped and checked when a document is first read from it."""

    def __init__(self, folder: Path, entry: dict[str, Any], dtype: str, shards: Shards) -> None:
        self.tokens, self.documents = _count(folder, entry, "tokens"), _count(folder, entry, "documents")
        self._bin, self._idx = (folder / _text(folder, entry, name) for name in ("file", "index"))
        self._hash, self._index_hash = _text(folder, entry, "hash"), _text(folder, entry, "index_hash")
        self._dtype, self._end = dtype, shards.end
        self._sources = len(shards.sources)
        self._maps: tuple[NDArray[Any], NDArray[Any]] | None = None

    def document(self, index: int) -> Document:
        tokens, table = self._maps or self._open()
        start = int(table[index - 1, 0]) if index else 0
        end, size, source = table[index].tolist()
        return Document(tokens[start:end].astype(np.int32), source, size)

    def sources(self) -> set[int]:
        _, table = self._maps or self._open()
        return set(np.unique(table[:, 2]).tolist())

    def _open(self) -> tuple[NDArray[Any], NDArray[Any]]:
        tokens = _mapped(self._bin, _DTYPES[self._dtype], self.tokens)
        table = _mapped(self._idx, "<u8", 3 * self.documents).reshape(-1, 3)
        _check_hash(self._bin, self._hash)
        _check_hash(self._idx, self._index_hash)
        ends = table[:, 0]
        sound = (ends[1:] > ends[:-1]).all() and (ends[-1:] == self.tokens).all() and (ends[:1] > 0).all()
        if not (sound and (table[:, 2] < self._sources).all() and (tokens[ends - 1] == self._end).all()):
            raise DataError(f"{self._idx} is damaged: it does not fit {self._bin.name}; {_MEND}")
        self._maps = (tokens, table)
        return self._maps


def _mapped(path: Path, dtype: str, count: int) -> NDArray[Any]:
    """The file as a read-only array of `count` numbers, which must be all of it."""
    wanted = count * np.dtype(dtype).itemsize
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {_MEND}") from None
    if found != wanted:
        raise DataError(f"{path} is damaged: {found} bytes instead of {wanted}; {_MEND}")
    # a plain view: slicing numpy's memmap class costs ten times as much
    return np.memmap(path, dtype, "r").view(np.ndarray) if count else np.empty(0, dtype)


def _check_hash(path: Path, wanted: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; {_MEND}")
    if content_hash(path) != wanted:
        raise DataError(f"{path} is not what {MANIFEST} describes (its hash differs); {_MEND}")


def _text(folder: Path, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise DataError(f"{folder / MANIFEST}: {key} is {value!r}; expected a text; {_MEND}")
    return value


def _count(folder: Path, entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int or value < 0:
        raise DataError(f"{folder / MANIFEST}: {key} is {value!r}; expected a whole number; {_MEND}")
    return value


def _entries(folder: Path, entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = entry.get(key)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{folder / MANIFEST}: {key} is not a list of objects; {_MEND}")
    return value


def _source(folder: Path, entry: dict[str, Any]) -> Source:
    licence = entry.get("licence")
    counts = (_count(folder, entry, key) for key in ("documents", "tokens", "bytes"))
    return Source(_text(folder, entry, "name"), licence if isinstance(licence, str) else "not stated", *counts)
