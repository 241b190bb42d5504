"""From the sources of a corpus file to parts: which files there are, what is in them, reading them once."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pando.corpus import engine
from pando.corpus.config import Config, Source
from pando.corpus.parts import PART_BYTES, READ_SCHEMA, key_of, write_table
from pando.corpus.readers import CODE, How, documents, format_of
from pando.corpus.words import digest
from pando.errors import DataError
from pando.files import atomic_write, content_hash, matching

_GROUP_BYTES = 8_000_000  # small files are read together
_HIDDEN = (".", "__pycache__")
VERSION = 3


@dataclass(frozen=True)
class Input:
    """One file: where it is, what it is called in the ledger, what stands for its content."""

    path: str
    name: str
    size: int
    mark: str


def discover(config: Config, work: Path) -> list[list[list[Input]]]:
    """The files of every source, in groups that one task reads; the hashes of unchanged files are remembered in `work`.

    Raises:
        DataError: a pattern of a source names nothing.
    """
    memory = _Memory(work / "inputs.json")
    made = Path(os.path.realpath(work))  # what is made of the sources is none itself
    own = (made, made.with_suffix(""), made.with_suffix(".html"))
    found = [_grouped(_inputs(source, config, memory, own)) for source in config.sources]
    memory.save()
    return found


def read_task(config: Config, source: Source, group: list[Input], work: Path) -> dict[str, Any]:
    """What `read` needs to turn a group of files into parts; the key stands for content and settings."""
    most = int(config.max_document_mb * 1e6)
    settings = {"name": source.name, "format": source.format, "text": source.text, "encoding": source.encoding}
    key = key_of("read", VERSION, most, PART_BYTES, settings, [(one.name, one.mark) for one in group])
    files = [(one.path, one.name) for one in group]
    return {"key": key, "files": files, "most": most, "folder": str(work / "read"), **settings}


def read(task: dict[str, Any]) -> dict[str, Any]:
    """Reads a group of files into parts and lists them in `<key>.json`, written last: where it is, all parts are."""
    folder, key = Path(task["folder"]), task["key"]
    done = folder / f"{key}.json"
    parts: list[dict[str, Any]] = []
    for rows in _filled(task):
        path = folder / f"{key}-{len(parts):05d}.parquet"
        write_table(path, pa.table(rows, schema=READ_SCHEMA))
        parts.append({"key": f"{key}-{len(parts):05d}", "rows": len(rows["id"]), "bytes": sum(rows["bytes"])})
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(done, json.dumps(parts))
    return {"parts": parts}


def _filled(task: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
    how = How(task["text"], task["encoding"], task["most"])
    rows: dict[str, list[Any]] = {name: [] for name in READ_SCHEMA.names}
    size = 0
    for path, name in task["files"]:
        with engine.opened(path) as file:
            for found in documents(file, name, task["format"], how):
                where = f"{name} {found.name}".rstrip()
                rows["id"].append(digest(f"{task['name']}\0{where}\0{found.row}".encode()).hex())
                rows["file"].append(where)
                rows["row"].append(found.row)
                rows["bytes"].append(found.size)
                rows["problem"].append(found.problem)
                rows["text"].append(found.text or "")
                size += len(found.text or "")
                if size >= PART_BYTES or len(rows["id"]) >= 200_000:
                    yield rows
                    rows, size = {name: [] for name in READ_SCHEMA.names}, 0
    if rows["id"]:
        yield rows


def _inputs(source: Source, config: Config, memory: _Memory, own: tuple[Path, ...]) -> list[Input]:
    found: dict[str, Input] = {}
    for pattern in source.files:
        if "://" in pattern:
            listed = [Input(url, url, size, f"{url} {size}") for url, size in engine.list_urls(pattern)]
        else:
            paths = _matches(config, pattern, source)
            listed = [_local(path, config, memory) for path in paths if not any(map(_real(path).is_relative_to, own))]
        if not listed:
            raise DataError(
                f"source {source.name}: {pattern} names no file; check the path (it starts at {config.folder})"
            )
        found |= {one.name: one for one in listed}
    return [found[name] for name in sorted(found)]


def _local(path: Path, config: Config, memory: _Memory) -> Input:
    name = os.path.relpath(path, config.folder) if path.is_relative_to(config.folder) else str(path)
    name = os.fsencode(name).decode("utf-8", "backslashreplace")  # a name need not be UTF-8, the ledger is
    return Input(str(path), name, path.stat().st_size, memory.hash(path))


def _real(path: Path) -> Path:
    """The path of a file with the links of its folders followed."""
    return _real_folder(path.parent) / path.name


@functools.lru_cache(1024)
def _real_folder(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _matches(config: Config, pattern: str, source: Source) -> Iterator[Path]:
    found = matching(config.folder, pattern)
    if len(found) == 1 and found[0].is_dir():
        for folder, below, names in os.walk(found[0]):
            below[:] = sorted(name for name in below if not name.startswith(_HIDDEN))
            for name in sorted(names):
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file() and _wanted(path, source):
                    yield path
    else:
        yield from filter(Path.is_file, found)


def _wanted(path: Path, source: Source) -> bool:
    """In a folder, a source of code takes only code, any other only what has a format of its own."""
    guessed, _ = format_of(path.name)
    bare = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if source.format == "code":
        return Path(bare).suffix in CODE
    if source.format == "chat":
        return guessed in ("jsonl", "parquet")
    return source.format == "auto" or guessed == source.format


def _grouped(files: list[Input]) -> list[list[Input]]:
    """Files that are read together, about `_GROUP_BYTES` of them. Whether a group ends behind a file is drawn from the
    file's name, so that a file more or less leaves the other groups as they were."""
    groups: list[list[Input]] = [[]]
    for one in files:
        groups[-1].append(one)
        if int.from_bytes(digest(one.name.encode())[:8], "little") / 2**64 < one.size / _GROUP_BYTES:
            groups.append([])
    return [group for group in groups if group]


class _Memory:
    """Hashes of files by path, size and time of change, so that unchanged ones are not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._known = {}
        self._new: dict[str, Any] = {}

    def hash(self, path: Path) -> str:
        """The content hash of a file."""
        about = path.stat()
        mark = [about.st_size, about.st_mtime_ns, about.st_ino]
        known = self._known.get(str(path))
        if not known or known[0] != mark:
            known = [mark, content_hash(path)]
        self._new[str(path)] = known
        return str(known[1])

    def save(self) -> None:
        """Keeps what was asked for."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path, json.dumps(self._new))
