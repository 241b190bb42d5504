"""Writing so that a killed process leaves nothing half done; hashes, format versions, progress."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pando.errors import FormatVersionError, PandoError

T = TypeVar("T")
_counter = itertools.count()


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Replaces the file `path` by `data` (text as UTF-8), whole or not at all; its folder must exist.

    Raises:
        PandoError: the file cannot be written (full disk, no permission, no such folder); the old one stays.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path` to write a large file to; on success it takes its place, else it is removed.

    Raises:
        PandoError: the file cannot be written (full disk, no permission, no such folder); an old one stays.
    """
    path = Path(path)
    temporary = _aside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to fill; on success it takes the place of `path`, else it is removed.

    Parents are made. What killed processes of this machine left of earlier tries is swept away.

    Raises:
        PandoError: the disk is full or the folder cannot be written; an old folder at `path` stays.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = _aside(path)
        temporary.mkdir()
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        _swap(temporary, path)
    except Exception as error:
        # safetensors reports a full disk as an error of its own with the system's number in the text
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "os error 28" in str(error):
            raise _unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_line(path: str | Path, text: str) -> None:
    """`append_lines` of one line."""
    append_lines(path, [text])


def append_lines(path: str | Path, texts: Sequence[str]) -> None:
    """Appends lines, safe on disk when this returns; killed midway it leaves the first of them and perhaps a torn one.

    A torn last line that a killed process left is cut off first.

    Raises:
        ValueError: a text holds a line break.
        PandoError: the file cannot be written.
    """
    if any("\n" in text for text in texts):
        raise ValueError("lines, without line breaks")
    path = Path(path)
    try:
        with path.open("a+b") as file:
            _cut_torn_line(file.fileno())
            file.write("".join(f"{text}\n" for text in texts).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def read_lines(path: str | Path) -> list[str]:
    """The whole lines of a file written by `append_line`; none if it does not exist. A torn last line is left out."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return [line.decode() for line in data.split(b"\n")[:-1]]


def content_hash(content: Any) -> str:
    """ "sha256:<hex>" of bytes, of a text (UTF-8), of the file at a `Path`, or of an object's canonical JSON."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def check_format(what: str, found: Any, known: int) -> None:
    """Refuses what a newer Pando wrote; `what` names it (and its file) in the error.

    Raises:
        FormatVersionError: `found` is newer than `known`.
        PandoError: `found` is not a version at all.
    """
    if type(found) is not int or found < 1:
        raise PandoError(f"{what} has no format version (found {found!r}): it was not written by Pando, or is damaged")
    if found > known:
        raise FormatVersionError(what, found, known)


@contextlib.contextmanager
def progress(total: float | None, label: str) -> Iterator[Callable[..., None]]:
    """Shows on standard error how far a loop is; yields `advance(n=1)`.

    On a terminal a bar, elsewhere a line at most every ten seconds. `total` None means unknown.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n=1.0: bar.advance(task, n)
        return
    done, said = 0.0, time.monotonic()

    def advance(n: float = 1) -> None:
        nonlocal done, said
        done += n
        if time.monotonic() - said >= 10:
            said = time.monotonic()
            print(f"{label}: {done:g}" + (f" of {total:g}" if total else ""), file=sys.stderr, flush=True)

    yield advance


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{next(_counter)}.tmp")


def _sweep(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        pid = left.name.removeprefix(f".{path.name}.").split(".")[0]
        if pid.isdecimal() and int(pid) != os.getpid() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def replaceable(path: Path, mark: str, *others: str) -> Path:
    """The path made absolute, links followed, where a folder is to take the place of what is there: nothing, an empty
    folder, or one like it.

    Args:
        mark: the file that such folders have.
        others: patterns of all other names in them.

    Raises:
        PandoError: it is a file, or a folder that holds something else, which would be lost.
    """
    path = Path(os.path.realpath(path))
    if not path.exists():
        return path
    names = sorted(one.name for one in path.iterdir()) if path.is_dir() else [path.name]
    strange = [name for name in names if not any(fnmatch.fnmatch(name, own) for own in (mark, *others))]
    if strange or (names and mark not in names) or not path.is_dir():
        what = (strange or names)[0]
        raise PandoError(f"{path} is there and holds something else ({what}), which would be lost: name a new folder")
    return path


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files and folders that a path or glob names, sorted; a relative one starts at `folder`. A path is no glob where
    there is something of that name, whatever characters it has.

    Raises:
        PandoError: it starts at the home of somebody unknown.
    """
    try:
        path = folder / Path(pattern).expanduser()
    except RuntimeError:
        raise PandoError(f"{pattern}: no home folder is known; write the whole path") from None
    if path.exists():
        return [path]
    below = str(Path(pattern).expanduser())
    return [folder / name for name in sorted(glob.glob(below, root_dir=folder, recursive=True))]


def _swap(new: Path, path: Path) -> None:
    """A folder cannot be renamed onto a full one: the old one steps aside for an instant."""
    old = _aside(path) if path.exists() else None
    if old:
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old:
            old.rename(path)
        raise
    sync(path.parent)
    if old:
        shutil.rmtree(old, ignore_errors=True)


def patiently(read: Callable[[], T], *errors: type[Exception]) -> T:
    """What `read` gives of a folder; tried again after these errors, for one that is being replaced is away for an
    instant."""
    for pause in (0.02, 0.1):
        try:
            return read()
        except errors:
            time.sleep(pause)
    return read()


def sync(path: Path) -> None:
    """Waits until a file or a folder's list of files is safe on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int) -> None:
    end = size = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        block = os.pread(descriptor, min(end, 65536), max(0, end - 65536))
        end = max(0, end - 65536) + block.rfind(b"\n") + 1
    if end < size:
        os.ftruncate(descriptor, end)


def _unwritable(path: Path, error: OSError) -> PandoError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PandoError(f"cannot write {path}: the disk is full; make room and run it again")
    return PandoError(f"cannot write {path}: {error.strerror or error}")
