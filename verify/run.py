"""Runs every check of this folder and ends in a table. See README.md here."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VERDICTS = {0: "holds", 77: "cannot run here"}


@dataclass
class Outcome:
    """How one check ended; `result` is the last line it printed."""

    check: str
    shows: str
    code: int
    result: str
    seconds: float

    @property
    def verdict(self) -> str:
        return VERDICTS.get(self.code, "FAILS")


def tree_key(root: Path) -> str:
    """Names the present content of the working tree: git's hash of it, uncommitted changes included."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        environment = {**os.environ, "GIT_INDEX_FILE": str(index)}
        real = subprocess.run(["git", "rev-parse", "--git-path", "index"], cwd=root, capture_output=True, text=True)
        if (root / real.stdout.strip()).is_file():
            shutil.copy(root / real.stdout.strip(), index)
        subprocess.run(["git", "add", "--all"], cwd=root, env=environment, check=True)
        done = subprocess.run(["git", "write-tree"], cwd=root, env=environment, check=True, capture_output=True)
        return done.stdout.decode().strip()[:16]


def run_check(script: Path, state: Path, root: Path) -> Outcome:
    """Runs one check, showing and keeping what it prints; a stored success on the same tree is returned as it is."""
    name = script.stem.removeprefix("check_")
    shows = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n")[0]
    stored = state / f"{name}.json"
    if stored.is_file():
        print(f"== {name}: held before on this very tree", flush=True)
        return Outcome(**json.loads(stored.read_text()))
    print(f"== {name}: {shows}", flush=True)
    work = state / f"{name}.work"
    work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "VERIFY_WORK": str(work), "PYTHONUNBUFFERED": "1"}
    start, last = time.monotonic(), ""
    with (state / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout
        try:
            for line in process.stdout:
                log.write(line)
                print("   " + line, end="", flush=True)
                last = line.strip() or last
        except KeyboardInterrupt:
            process.wait()  # it has had the signal too
            raise
        code = process.wait()
    outcome = Outcome(name, shows, code, last, time.monotonic() - start)
    if code == 0:
        aside = stored.with_suffix(".tmp")
        aside.write_text(json.dumps(asdict(outcome)))
        aside.replace(stored)
    return outcome


def table(outcomes: list[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title="What was checked", title_justify="left")
    for title in ("check", "what it shows", "", "result"):
        grid.add_column(title, overflow="fold")
    grid.add_column("seconds", justify="right")
    for one in outcomes:
        style = {0: "green", 77: "yellow"}.get(one.code, "red")
        cells = (one.check, one.shows, Text(one.verdict, style), one.result, f"{one.seconds:.0f}")
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(grid)


def main(names: list[str], folder: Path = HERE, root: Path = ROOT, keep: Path = ROOT / ".cache" / "verify") -> int:
    """Runs the named checks, or all; returns the exit code."""
    scripts = {path.stem.removeprefix("check_"): path for path in sorted(folder.glob("check_*.py"))}
    if unknown := set(names) - set(scripts):
        print(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(scripts)}", file=sys.stderr)
        return 2
    state = keep / hashlib.sha256((tree_key(root) + sys.version).encode()).hexdigest()[:16]
    state.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    try:
        for name in names or scripts:
            outcomes.append(run_check(scripts[name], state, root))
    except KeyboardInterrupt:
        print(f"stopped; {len(outcomes)} of {len(names or scripts)} were run, the next run goes on from here")
        return 130
    finally:
        table(outcomes)
    unrun = [one.check for one in outcomes if one.code == 77]
    if unrun:
        print(f"{len(outcomes) - len(unrun)} of {len(outcomes)} were run; not: {', '.join(unrun)}")
    return int(any(one.code not in VERDICTS for one in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
