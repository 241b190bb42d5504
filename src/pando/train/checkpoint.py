"""Checkpoints of a run: written aside, checked, renamed; `latest` is brought up to date last.

    DIR/checkpoints/step-00000200/    tensors as torch.distributed.checkpoint writes them, for any number of ranks
    DIR/checkpoints/step-00000200/checkpoint.json    step, position of the stream, random states, hash of each file
    DIR/checkpoints/latest            the name of the newest one

A process that is killed while it writes leaves the older checkpoint as it was. Tensors are read without unpickling; of
the one pickled file, torch's table of contents, only the few types that it is made of are let in.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pickle
import random
import shutil
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pando.errors import PandoError
from pando.files import atomic_write, check_format, content_hash, sync
from pando.train.config import KeepConfig
from pando.train.parallel import Place

FORMAT = 1
FACTS = "checkpoint.json"
LATEST = "latest"


class CheckpointError(PandoError):
    """A checkpoint that cannot be written or gone on from."""


def save(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], place: Place) -> Path:
    """Writes the checkpoint of a step. All ranks call it; the first one's `facts` count.

    Args:
        folder: of all checkpoints of the run.
        tensors: by name; each rank writes its parts of what is sharded.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; older checkpoints stay as they were.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as write

    final, aside = folder / _name(step), folder / f".{_name(step)}.tmp"
    problem: BaseException | None = None
    try:
        if place.first:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            aside.mkdir()
    except OSError as error:
        problem = error
    if place.agree(float(problem is not None)):
        raise _unwritten(final, problem, newest(folder)) from problem
    try:
        writer = FileSystemWriter(aside)
        with _quiet():
            write(tensors, storage_writer=writer, no_dist=place.world == 1)
        if place.first:
            files = {path.name: content_hash(path) for path in sorted(aside.iterdir())}
            atomic_write(aside / FACTS, json.dumps({"format_version": FORMAT, "step": step, "files": files, **facts}))
            sync(aside)
            if final.exists():
                shutil.rmtree(final)
            aside.rename(final)
            sync(folder)
            atomic_write(folder / LATEST, final.name)
    except (Exception, CheckpointException) as error:  # torch's is no Exception
        problem = error
    if place.agree(float(problem is not None)) or problem is not None:
        if place.first:
            shutil.rmtree(aside, ignore_errors=True)
        raise _unwritten(final, problem, newest(folder)) from problem
    return final


def load(path: Path, tensors: dict[str, Tensor], place: Place) -> None:
    """Fills tensors in place from a checkpoint that `facts` has checked.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load as read

    try:
        reader = _reader(path)
        reader.read_metadata()  # by itself, as torch would look for another one where this is refused
        with _quiet():
            read(tensors, storage_reader=reader, no_dist=place.world == 1)
    except (CheckpointException, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} does not fit this run ({_first_line(error)}); start a new one") from None


def facts(path: Path) -> dict[str, Any]:
    """What a checkpoint knows besides tensors, once every file of it has been found whole.

    Raises:
        CheckpointError: a file is missing or damaged; names it, and the older checkpoint to go on from.
        FormatVersionError: a newer Pando wrote it.
    """
    try:
        found: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
        check_format(str(path / FACTS), found.get("format_version"), FORMAT)
        files = found["files"].items()
        if not {"config", "trainer", "random", "seconds", "validation"} <= found.keys():
            raise _damaged(path, FACTS)
    except (OSError, ValueError, KeyError, AttributeError):
        raise _damaged(path, FACTS) from None
    for name, digest in files:
        if not (path / name).is_file() or content_hash(path / name) != digest:
            raise _damaged(path, name)
    return found


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from: the one that `latest` names, else the newest that is there."""
    with contextlib.suppress(OSError):
        named = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
        if named.parent == folder and named.is_dir():
            return named
    there = whole(folder)
    return there[-1] if there else None


def whole(folder: Path) -> list[Path]:
    """All finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def retire(folder: Path, keep: KeepConfig) -> None:
    """Removes what is neither among the newest nor to be kept for good."""
    current = newest(folder)
    for path in whole(folder)[: -keep.last]:
        step = int(path.name.removeprefix("step-"))
        if path != current and not (keep.every and step % keep.every == 0):
            shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The state of every generator that code of a step might draw from."""
    kind, keys, place, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    found: dict[str, Any] = {
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "numpy": [kind, np.asarray(keys).tolist(), place, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        found["cuda"] = bytes(torch.cuda.get_rng_state().tolist()).hex()
    return found


def restore_random_state(state: dict[str, Any]) -> None:
    """Takes up what `random_state` told."""
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(state["cuda"])), dtype=torch.uint8))


class _Contents(pickle.Unpickler):
    """Reads torch's table of contents and nothing else: a file that names any other type is refused."""

    _MODULES: ClassVar = {
        "torch.distributed.checkpoint.metadata": (
            "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "torch": ("Size", "device"),
        "pathlib": ("Path", "PosixPath", "PurePosixPath"),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # Python 3.13's name for it
        number = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not number and name not in self._MODULES.get(module, ()):
            raise pickle.UnpicklingError(f"its table of contents names {module}.{name}")
        return super().find_class(module, name)


def _reader(path: Path) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            with (path / ".metadata").open("rb") as file:
                found: Metadata = _Contents(file).load()
            found.storage_meta = found.storage_meta or StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    return Reader(path)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _sweep(folder: Path) -> None:
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _damaged(path: Path, name: str) -> CheckpointError:
    older = [one for one in whole(path.parent) if one.name < path.name]
    mend = f"remove {path} and go on from {older[-1].name}" if older else f"remove {path} and start anew"
    return CheckpointError(f"{path / name} is missing or damaged: {mend}")


def _unwritten(final: Path, problem: BaseException | None, kept: Path | None) -> CheckpointError:
    said = f"{kept.name} is kept, go on from it with --resume" if kept else "there is no older one"
    if problem is not None and _disk_full(problem):
        return CheckpointError(f"the checkpoint {final} cannot be written, the disk is full; make room; {said}")
    why = _first_line(problem) if problem is not None else "another rank failed"
    return CheckpointError(f"the checkpoint {final} cannot be written ({why}); {said}")


def _disk_full(problem: BaseException | None) -> bool:
    """Whether this or what lies behind it is a full disk; torch wraps the errors of its writers."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        failures = getattr(problem, "failures", {})
        if any(_disk_full(one[0]) for one in failures.values()) or "No space left" in str(problem):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def _first_line(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[-1][:200]


@contextlib.contextmanager
def _quiet() -> Any:
    """torch warns that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
