"""The engine under the corpus: the only module that imports Daft.

It runs tasks (a function of one JSON object) on Daft's native runner or on a Ray cluster, lists and opens what URLs
name, and lends Daft's MinHash kernel. What a task writes depends on the task alone, so it does not matter how many
workers run it, in what order, or where.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pando.errors import PandoError

# before the first import: neither library may call home
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "SCARF_NO_ANALYTICS": "1",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}.items():
    os.environ[_name] = _value

_MODULE = "pando.corpus.work"
_threads = 1
_ray = _started = False


def start(threads: int = 0, ray: str | None = None) -> None:
    """Chooses the runner; a process keeps the first it chose.

    Args:
        threads: of the native runner; 0 is every core.
        ray: address of a Ray cluster, or "local" for one on this machine with `threads` workers.

    Raises:
        PandoError: Daft or Ray is missing, or the cluster cannot be reached.
    """
    global _threads, _ray, _started
    if _started:
        return
    daft = _daft()
    _started, _threads = True, threads or os.cpu_count() or 1
    if ray is None:
        daft.set_runner_native(num_threads=_threads)
        return
    try:
        import ray as cluster
    except ImportError:
        raise PandoError("--ray needs Ray: install pando-fm[ray]") from None
    if not cluster.is_initialized():
        where: dict[str, Any] = (
            {"num_cpus": _threads, "include_dashboard": False} if ray == "local" else {"address": ray}
        )
        try:
            cluster.init(
                log_to_driver=False, configure_logging=False, runtime_env={"env_vars": _environment()}, **where
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PandoError(f"no Ray cluster at {ray}: {error}; `--ray local` starts one here") from None
    _threads = max(1, int(cluster.cluster_resources().get("CPU", 1)))
    daft.set_runner_ray(noop_if_initialized=True)
    _ray = True


def run(function: str, tasks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Runs `pando.corpus.work.<function>` on every task and yields the answers, each with its "task" (its place), as
    they are ready.

    Raises:
        PandoError: what a task raised.
    """
    if not tasks:
        return
    daft = _daft()
    names = [json.dumps({"function": function, "place": place, **task}) for place, task in enumerate(tasks)]
    frame = daft.from_pydict({"task": names})
    frame = frame.into_partitions(len(names)) if _ray else frame.into_batches(1)
    frame = frame.select(daft.func(_answer, return_dtype=daft.DataType.string())(daft.col("task")).alias("answer"))
    for row in frame.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise PandoError(answer["error"])
        yield answer


def minhash(text: pa.Array, permutations: int, ngram: int, seed: int) -> npt.NDArray[np.uint32]:
    """MinHash signatures of texts whose words are parted by spaces: [D, permutations]."""
    daft = _daft()
    from daft.functions import minhash as kernel
    from daft.recordbatch import RecordBatch

    # on a batch, for on a series it would hold up the other threads' Python
    batch = RecordBatch.from_arrow_table(pa.table({"text": text.cast(pa.large_string())}))
    asked = {"num_hashes": permutations, "ngram_size": ngram, "seed": seed, "hash_function": "murmurhash3"}
    made = batch.eval_expression_list([kernel(daft.col("text"), **asked)]).to_arrow_table().column(0).combine_chunks()
    flat = made.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.uint32).reshape(len(text), permutations)


def list_urls(pattern: str) -> list[tuple[str, int]]:
    """(URL, bytes) of the files that a remote pattern names, in order of their URLs.

    Raises:
        PandoError: the place cannot be reached.
    """
    daft = _daft()
    try:
        found = daft.from_glob_path(pattern).to_pydict()
    except Exception as error:  # Daft raises bare ones for whatever a store answers
        why = str(error).splitlines()[0][:200]
        raise PandoError(f"{pattern} names nothing that can be listed ({why}); * ? [ ] are patterns in it") from None
    return sorted(zip(found["path"], found["size"], strict=True))


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file of this machine, or what a URL names, open for reading bytes."""
    if "://" not in path:
        with open(path, "rb") as file:
            yield file
        return
    with _reached(path):
        file = _daft().File(path).open()
    with file, io.BufferedReader(_Remote(file, path), 1 << 20) as whole:
        yield whole


@contextlib.contextmanager
def _reached(path: str) -> Iterator[None]:
    """Says what Daft stumbled over; it raises bare errors for whatever a store answers."""
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise PandoError(f"{path} cannot be read: {lines[0][:200]}; the same command goes on") from None


class _Remote(io.RawIOBase):
    """A file of Daft's as Python's readers want one."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        with _reached(self._path):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _reached(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _answer(task: str) -> str:
    asked = json.loads(task)
    place = asked.pop("place")
    try:
        function = getattr(importlib.import_module(_MODULE), asked.pop("function"))
        return json.dumps({**function(asked), "task": place})
    except PandoError as error:
        return json.dumps({"error": str(error), "task": place})


def _environment() -> dict[str, str]:
    import sys

    path = os.pathsep.join(part for part in sys.path if part)
    quiet = ("DO_NOT_TRACK", "DAFT_ANALYTICS_ENABLED", "SCARF_NO_ANALYTICS", "RAY_USAGE_STATS_ENABLED")
    return {"PYTHONPATH": path} | {name: os.environ[name] for name in quiet}


def _daft() -> Any:
    try:
        import daft
    except ImportError:
        raise PandoError("a corpus needs Daft: install pando-fm[corpus]") from None
    return daft
