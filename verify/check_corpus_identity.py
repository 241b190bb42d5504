"""One corpus, whichever way it is built: 1 thread, 2 threads, Ray with 2 workers, and killed ten times, one hash.

All nine files of public pretraining text go through every stage. All files of the folders are compared too. The kills
(SIGKILL of the whole process group) fall at random moments of the whole build, the linking of near-duplicates and the
writing of shards among them; what was finished before a kill must not be done again: each file that ends a task must be
the very one, by inode and time of change, that was there when the process died.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _corpus import command, manifest_hash, need_data, write_config

KILLS = 10


def built(config: Path, out: Path, *more: str) -> float:
    """Builds a corpus that is not there yet; returns the seconds."""
    started = time.monotonic()
    if not (out / "manifest.json").exists():
        subprocess.run(command(config, out, *more), check=True, stdout=subprocess.DEVNULL, timeout=1800)
    seconds = time.monotonic() - started
    print(f"{out.name}: {manifest_hash(out)} in {seconds:.0f} s", flush=True)
    return seconds


def finished(work: Path) -> dict[Path, tuple[int, int]]:
    """The files that end a task, each with its inode and time of change."""
    ends = {"read": ".json", "tokens": ".npy", "shards": ".json"}  # of stages whose tasks write several files
    return {
        path: ((about := path.stat()).st_ino, about.st_mtime_ns)
        for path in work.glob("*/*")
        if path.is_file() and not path.name.startswith(".") and path.suffix == ends.get(path.parent.name, path.suffix)
    }


def again(work: Path, before: dict[Path, tuple[int, int]]) -> list[str]:
    """Tasks that were finished `before` and have been done once more, or are gone."""
    now = finished(work)
    return [f"{path.parent.name}/{path.name}" for path, mark in before.items() if now.get(path) != mark]


def linking(process: subprocess.Popen[bytes], work: Path) -> None:
    """Waits until some bands of near-duplicates have been linked, but not all."""
    while process.poll() is None and not list(work.glob("links/*-0.npy")):
        time.sleep(0.005)


def killed(config: Path, out: Path, whole: float) -> tuple[int, list[str], list[str]]:
    """Kills the build at random moments, twice while it links near-duplicates, then lets it end.

    Returns:
        The kills, the stages they fell in, and the tasks that were done twice.
    """
    draw, fell, twice, kills = random.Random(20), [], [], 0
    shutil.rmtree(out, ignore_errors=True)
    work = out.with_name(out.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    before: dict[Path, tuple[int, int]] = {}
    while kills < KILLS:
        shuffle = kills >= KILLS - 2
        if shuffle:
            for stage in ("shards", "tokens", "links", "tokenizer"):
                shutil.rmtree(work / stage, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            before = finished(work)
        process = subprocess.Popen(
            command(config, out, "--threads", "2"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if shuffle:
            linking(process, work)
        else:  # moments are drawn so that ten of them spread over the work of one whole build
            time.sleep(3 + draw.uniform(0, 2 * whole / KILLS))
        if process.poll() is not None:
            if not (out / "manifest.json").exists():
                raise SystemExit("a build that was killed before ended without a corpus")
            twice += again(work, before)
            shutil.rmtree(out)
            for stage in ("shards", "tokens", "links", "tokenizer"):  # begin again in the middle
                shutil.rmtree(work / stage, ignore_errors=True)
            before = finished(work)
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        twice += again(work, before)
        before = finished(work)
        stages = {
            path.name: max((f.stat().st_mtime for f in path.iterdir()), default=0)
            for path in work.iterdir()
            if path.is_dir()
        }
        fell.append(max(stages, key=lambda name: stages[name]) if stages else "start")
        print(f"killed {kills}: {fell[-1]}; {len(before)} tasks finished", flush=True)
    built(config, out, "--threads", "2")
    return kills, fell, twice + again(work, before)


def main() -> int:
    need_data()
    home = Path(os.environ.get("VERIFY_WORK") or tempfile.mkdtemp())
    config = write_config(home / "corpus.yaml")
    whole = built(config, home / "one", "--threads", "1")
    built(config, home / "two", "--threads", "2")
    outs = ["one", "two", "killed"]
    kills, fell, twice = killed(config, home / "killed", whole)
    if importlib.util.find_spec("ray"):
        built(config, home / "ray", "--threads", "2", "--ray", "local")
        outs.append("ray")
    hashes = {manifest_hash(home / out) for out in outs}
    names = sorted(path.name for path in (home / "one").iterdir())
    differ = [
        f"{out}/{name}"
        for out in outs[1:]
        for name in names
        if (home / out / name).read_bytes() != (home / "one" / name).read_bytes()
    ]
    ray = "" if "ray" in outs else "; Ray is not installed"
    print(
        f"{', '.join(outs)}: {len(hashes)} hash, {len(differ)} of {len(names)} files differ {differ[:3]}; {kills} "
        "kills in "
        f"{', '.join(sorted(set(fell)))}; {len(twice)} finished tasks done again {twice[:3]}{ray}"
    )
    good = len(hashes) == 1 and not differ and not twice and "links" in fell
    return (0 if "ray" in outs else 77) if good else 1


if __name__ == "__main__":
    sys.exit(main())
