"""The folder that a ladder works in (`--out`): what it was made for, what is finished, how long it took.

run.json                  what the run was made for, its id and its seconds so far
splits.json               which row is in which split
items.jsonl               every scored item
rungs/<name>/             a rung's own working files, and state.json once it is built
skins/<name>/             the skin of each rung
skin/                     the chosen one
report.json, report.html  the result
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pando.errors import PandoError
from pando.files import atomic_write, check_format

FORMAT_VERSION = 1
_OURS = ("run.json", "splits.json", "items.jsonl", "rungs", "skins", "skin", "report.json", "report.html")


class Folder:
    """An open working folder; one process at a time has it.

    Attributes:
        path: where it is.
        id: drawn at random when the run began, the same after an interruption.
    """

    def __init__(self, path: str | Path, *, fresh: bool = False) -> None:
        """Opens or makes it.

        Args:
            fresh: throw away what an earlier run left here.

        Raises:
            PandoError: another process works in it, it cannot be written, its `run.json` is damaged, or it holds files
                under the names of ours that no ladder wrote.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PandoError(f"cannot make the folder {self.path}: {error.strerror}") from None
        if not (self.path / "run.json").exists() and (others := [n for n in _OURS if (self.path / n).exists()]):
            raise PandoError(f"{self.path} holds {others[0]}, which no ladder wrote: use another --out")
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PandoError(f"another `pando adapt` works in {self.path}; wait for it, or use another --out") from None
        if fresh:
            self._clear()
        self._began = time.monotonic()
        found = self._json(self.path / "run.json")
        self.id: str = found.get("id") or secrets.token_hex(8)
        self._before = float(found.get("seconds") or 0.0)
        self._made_for: dict[str, str] = dict(found.get("made_for") or {})

    def claim(self, **purpose: str) -> None:
        """Says what the run is for; later it must be the same. It is kept from the first `beat` on.

        Raises:
            PandoError: the folder was made for something else.
        """
        for name, value in purpose.items():
            known = self._made_for.setdefault(name, value)
            if known != value:
                was = f" ({known}, now {value})" if len(known) < 20 else ""
                raise PandoError(
                    f"{self.path} holds a ladder with another {name}{was}: use another --out, or --fresh to start anew"
                )

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, those before interruptions included."""
        return self._before + time.monotonic() - self._began

    def beat(self) -> None:
        """Keeps the seconds so far, so that a killed process loses few of them."""
        record = {"format_version": FORMAT_VERSION, "id": self.id, "made_for": self._made_for, "seconds": self.seconds}
        atomic_write(self.path / "run.json", json.dumps(record, indent=1) + "\n")

    @property
    def items(self) -> Path:
        return self.path / "items.jsonl"

    @property
    def splits(self) -> Path:
        return self.path / "splits.json"

    @property
    def chosen(self) -> Path:
        return self.path / "skin"

    def skin(self, rung: str) -> Path:
        return self.path / "skins" / rung

    def workdir(self, rung: str) -> Path:
        folder = self.path / "rungs" / rung
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def state(self, rung: str) -> dict[str, Any]:
        """What is kept of a rung: {} before it was begun, `seconds` of building, `skin` once built."""
        return self._json(self.path / "rungs" / rung / "state.json")

    def keep(self, rung: str, state: Mapping[str, Any]) -> None:
        """Replaces what is kept of a rung."""
        record = {"format_version": FORMAT_VERSION, **state}
        atomic_write(self.workdir(rung) / "state.json", json.dumps(record) + "\n")

    def close(self) -> None:
        """Lets others work in it."""
        self._lock.close()

    def _clear(self) -> None:
        for name in _OURS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise PandoError(f"{path} is damaged: use another --out, or --fresh to start anew") from None
        check_format(str(path), found.get("format_version"), FORMAT_VERSION)
        return dict(found)
