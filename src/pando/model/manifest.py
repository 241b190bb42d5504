"""`pando.json`: which files a base is made of, their hashes, and where the base came from."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pando.errors import BaseModelError, PandoError
from pando.files import atomic_write, check_format, content_hash, progress
from pando.interface import Identity
from pando.model.checkpoint import check_whole

NAME = "pando.json"
_FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """One file: "sha256:...", bytes, and the modification time (ns) at which that hash was true."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """Identity and files of a base."""

    identity: Identity
    files: dict[str, FileRecord]

    def write(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        files = {name: asdict(record) for name, record in self.files.items()}
        content = {"format_version": _FORMAT, **asdict(self.identity), "files": files}
        atomic_write(path, json.dumps(content, indent=1))


def make_manifest(
    folder: Path,
    names: Sequence[str],
    name: str,
    source: str,
    revision: str | None = None,
    licence: str | None = None,
) -> Manifest:
    """Hashes the files `names` of a folder. The base's hash is over these names and their contents alone.

    Raises:
        BaseModelError: a weights file is cut off or damaged.
    """
    for n in names:
        if n.endswith(".safetensors"):
            check_whole(folder / n)
    files = {}
    with progress(sum((folder / n).stat().st_size for n in names), f"hashing {name}") as advance:
        for n in sorted(names):
            files[n] = _record(folder / n)
            advance(files[n].size)
    digest = content_hash({n: record.sha256 for n, record in files.items()})
    return Manifest(Identity(name, digest, source, revision, licence), files)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file, or None if there is no such file.

    Raises:
        FormatVersionError: written by a newer Pando.
        BaseModelError: damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_format(str(path), content["format_version"], _FORMAT)
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        fields = ("name", "hash", "source", "revision", "licence")
        return Manifest(Identity(**{field: content[field] for field in fields}), files)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{path} is damaged ({error!r}); pull the base again") from None


def verify(folder: Path, manifest: Manifest, *, full: bool = False) -> Manifest:
    """Checks sizes and modification times, and the hash of each file whose time differs (`full`: of every file).

    Returns:
        The manifest, with the times brought up to date.

    Raises:
        BaseModelError: a file is missing or changed; names it.
    """
    files = {}
    for name, record in manifest.files.items():
        path = folder / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise BaseModelError(f"{path} is missing; pull the base again") from None
        if stat.st_size != record.size:
            wrong = f"{stat.st_size} bytes instead of {record.size}"
            raise BaseModelError(f"{path} is broken: {wrong}; pull the base again")
        if full or stat.st_mtime_ns != record.mtime_ns:
            if content_hash(path) != record.sha256:
                raise BaseModelError(f"{path} is broken: its content has changed; pull the base again")
            record = replace(record, mtime_ns=stat.st_mtime_ns)
        files[name] = record
    return replace(manifest, files=files)


def remembered(cache: Path, folder: Path, names: Sequence[str], name: str) -> Manifest:
    """The manifest of files that we do not write beside; made once, and kept below `cache` while they do not change."""
    place = cache / "paths" / f"{content_hash([str(folder), *sorted(names)]).removeprefix('sha256:')[:32]}.json"
    with contextlib.suppress(PandoError):  # a stale or damaged memory is made anew
        known = read_manifest(place)
        if known is not None and set(known.files) == set(names):
            current = verify(folder, known)
            if current != known:
                current.write(place)
            return current
    manifest = make_manifest(folder, names, name, source=str(folder))
    place.parent.mkdir(parents=True, exist_ok=True)
    manifest.write(place)
    return manifest


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock beside `path`, so that only one process of this machine makes it at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _record(path: Path) -> FileRecord:
    stat = path.stat()
    return FileRecord(content_hash(path), stat.st_size, stat.st_mtime_ns)
