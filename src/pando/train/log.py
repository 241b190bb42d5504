"""The log of a run: one JSON object a line, which any tracker can read, and a line or a bar for who is watching.

`DIR/log.jsonl` has lines of these kinds: "start" of each session, "step", "validation", "sample", "evaluation",
"checkpoint", "end". Each has `kind`, `step` (how many were made before it) and `at` (seconds since 1970). Losses are
written so that reading them gives the very same float32.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pando.errors import PandoError
from pando.files import atomic_write, read_lines

NAME = "log.jsonl"


class Log:
    """Appends to the log of a run.

    Args:
        path: the file.
        step: lines of later steps, which a killed process left beyond the checkpoint it is gone on from, are dropped.

    Attributes:
        dropped: seconds of the steps that were dropped and are made again.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept, self.dropped = [], 0.0
        for line, record in _records(path):
            if record["step"] <= step and not (record["kind"] == "step" and record["step"] >= step):
                kept.append(line)
            else:
                self.dropped += record.get("seconds", 0.0) if record["kind"] == "step" else 0.0
        atomic_write(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Appends one line. Numbers that are not finite become null, as JSON has none."""
        record = {"kind": kind, "step": step, "at": round(time.time(), 3), **values}
        self._file.write(json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log; none if there is no such file.

    Raises:
        PandoError: one is damaged; names it.
    """
    return [record for _, record in _records(path)]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as it stands, and what it says."""
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as error:
        raise PandoError(f"{path} is damaged ({error}): take the line out and try again") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            known = isinstance(record["kind"], str) and isinstance(record["step"], int)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise PandoError(f"{path}:{number} is damaged: take the line out and try again")
        yield line, record


class Watcher:
    """What a person sees of a run, on standard error: a bar on a terminal, elsewhere a line every ten seconds.

    Args:
        total: steps of the whole run. start: steps made before.
        usd_per_second: price of all ranks' machines together.
        quiet: shows nothing.
    """

    def __init__(self, total: int, start: int, usd_per_second: float, quiet: bool = False) -> None:
        self._total, self._start, self._price = total, start, usd_per_second
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        self._quiet = quiet
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=start)

    def step(self, done: int, loss: float, speed: float, mfu: float | None, memory: float) -> None:
        """After a step: steps made, loss in nats, tokens a second, share of the peak (None: unknown), bytes."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._bar is None and now - self._said < 10 and done < self._total:
            return
        self._said = now
        left = (now - self._began) / max(1, done - self._start) * (self._total - done)
        parts = [f"loss {loss:.3f}", f"{speed:,.0f} tokens/s", *([f"MFU {100 * mfu:.0f} %"] if mfu is not None else [])]
        parts += [f"{memory / 2**30:.1f} GiB", f"{_duration(left)} left", f"${left * self._price:.2g} left"]
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=" · ".join(parts))
        else:
            print(f"step {done:,} of {self._total:,}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def losses(records: list[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """(step, loss in nats) of a log's steps; steps without a finite loss are left out."""
    for record in records:
        if record["kind"] == "step" and record["loss"] is not None:
            yield record["step"], record["loss"]
