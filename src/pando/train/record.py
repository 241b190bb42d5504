"""What a run's folder says of the run: what it was made for, whether it may be gone on with, what the ledger has."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pando.errors import PandoError
from pando.files import atomic_write, check_format
from pando.model.base import open_base
from pando.train.config import PretrainConfig, build, changes
from pando.train.configfile import Given, read_config
from pando.train.log import NAME, read_log
from pando.train.shards import Shards

if TYPE_CHECKING:
    from pando.train.loop import Outcome

FORMAT = 1
RUN, BILLED = "run.json", "billed.json"


def claim(folder: Path) -> IO[str]:
    """Keeps other processes of this machine out of a run's folder, until what is returned is closed.

    Raises:
        PandoError: one has it.
    """
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise PandoError(f"another process is training in {folder}: wait for its end, or name another --out") from None
    return file


def read_run(folder: Path) -> dict[str, Any]:
    """run.json, or {} where there is none.

    Raises:
        PandoError: it is damaged, or of a newer format.
    """
    path = folder / RUN
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = found.get("format_version")
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise PandoError(f"{path} is damaged ({error}): name another folder") from None
    check_format(str(path), version, FORMAT)
    if missing := {"given", "corpus"} - found.keys():
        raise PandoError(f"{path} is damaged ({' and '.join(sorted(missing))} missing): name another folder")
    return found


def write_run(folder: Path, facts: dict[str, Any]) -> None:
    """Keeps run.json."""
    atomic_write(folder / RUN, json.dumps({"format_version": FORMAT, **facts}))


def billed(folder: Path) -> dict[str, Any]:
    """What of a run is in the ledger: seconds, US dollars, tokens, and whether it is as a finished one.

    Raises:
        PandoError: the note of it is damaged.
    """
    nothing: dict[str, Any] = {"seconds": 0.0, "usd": 0.0, "tokens": 0, "finished": False}
    path = folder / BILLED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in nothing}
    except FileNotFoundError:
        return nothing
    except (ValueError, KeyError, TypeError):
        raise PandoError(f"{path} is damaged: remove it, and the ledger counts the run from its beginning") from None


def note_billed(outcome: Outcome) -> None:
    """Notes that all of it is in the ledger now."""
    noted = {"seconds": outcome.seconds, "usd": outcome.usd, "tokens": outcome.tokens, "finished": outcome.finished}
    atomic_write(outcome.folder / BILLED, json.dumps(noted))


def was_kept(folder: Path) -> bool:
    """Whether the run once had a checkpoint."""
    return (folder / "model").exists() or any(one["kind"] == "checkpoint" for one in read_log(folder / NAME))


def base_hash(config: PretrainConfig) -> str | None:
    """The hash of the base that a run goes on from, if it does."""
    return None if config.base is None else open_base(config.base).identity.hash


def same_run(given: Given, found: dict[str, Any], folder: Path, shards: Shards) -> PretrainConfig:
    """The resolved config of a run that is gone on with. What only says how the work is done may have changed.

    Args:
        given: what pretrain.yaml says now. found: what run.json says.

    Raises:
        PandoError: the corpus, the base or a value that the run depends on has changed.
    """
    if found["corpus"] != shards.hash:
        raise PandoError(
            f"{shards.folder} is not the corpus of the run in {folder} ({shards.hash[:19]}, the run has "
            f"{found['corpus'][:19]}): name that one with --corpus, or another --out"
        )
    old, new = found["given"], json.loads(json.dumps(given.values))
    changed = changes(old, new)
    if changed:
        name = changed[0].split(" ")[0]
        raise given.wrong(name, f"changed since the run in {folder} began: {'; '.join(changed)}; set it back")
    resolved = read_config(folder / "config.yaml").values
    if found.get("base") != base_hash(build(resolved)):
        raise given.wrong("base", f"has changed since the run in {folder} began: put it back, or name another --out")
    free = {name: value for name, value in given.values.items() if old.get(name) != new.get(name)}
    dropped = {name for name in old if name not in new}
    config: PretrainConfig = build({**{k: v for k, v in resolved.items() if k not in dropped}, **free})
    return config
